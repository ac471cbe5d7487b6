/* The tour: stops through the page, each with a sentence or two about what this recording has there.

   Every stop is computed from the recording, so that it is also true of another model and another text. */

let tourStops = []; // { name, section, state, text }; `state` is what differs from the page's first state

/** Open a stop, counted from 1. The rest of the state is the page's first. */
async function openStop(number) {
  stopPlaying();
  for (const part of [recording.runs[0], recording.encoder]) await unpackAll(part?.attention ?? null);
  resetState();
  tourStops = findStops();
  setState({ tour: number }); // limited to the stops that there are
  setState(tourStops[state.tour - 1].state);
}

/** The stops of the greedy answer, in the first state of the page. Those without a subject are left out. */
function findStops() {
  const first = [textStop, nextStop, streamStop, lensStop, lookupStop, computationStop, previousTokenStop];
  return [...first, beamsStop, ablationStop, patchingStop].map((stop) => stop()).filter(Boolean);
}

const inWords = (part) => `block ${part.block}’s ${part.kind}${isT5 ? ` in the ${part.stack}` : ""}`;

/** Tokens as running text, without special ones such as </s>. */
function textOf(ids) {
  const words = ids.map(piece).filter((text) => !/^<.*>$/.test(text));
  return `‘\u2068${truncate(words.join("").trim())}\u2069’`;
}

const largest = (items, value) => items.reduce((best, item) => (value(item) > value(best) ? item : best));

function textStop() {
  const answer = textOf(run().ids.slice(promptLength()));
  const reads = isT5
    ? `The encoder reads ${source().length} tokens at once, and the decoder writes the answer token by token: ` +
      `${answer}.`
    : `The model reads ${promptLength()} tokens and continues them token by token: ${answer}.`;
  const isStart = isT5 && state.at === 0;
  return {
    name: "The text",
    section: "text",
    state: {},
    text:
      `${reads} The framed token ${quote(runTokens()[state.at])}${isStart ? ", T5’s start token," : ""} is the ` +
      `current one: the page shows how ${quote(runTokens()[state.at + 1])} comes to follow it.`,
  };
}

function nextStop() {
  const [[first, most], [second, less]] = nextTokens(state.at).tokens;
  return {
    name: "The next token",
    section: "panels",
    state: { tab: "next" },
    text:
      `After ${quote(runTokens()[state.at])} the model gives ${quote(first)} ${percent(most)} and the second, ` +
      `${quote(second)}, ${percent(less)}. Raise the temperature, and the first loses to the others.`,
  };
}

/** The sublayer that adds most to the stream. */
function streamStop() {
  const norms = (part) => [
    normAt("output_norms", part.output, part, state.at),
    normAt("residual_norms", part.residual, part, state.at),
  ];
  const own = Object.values(parts).filter((part) => part.stack === "decoder");
  const part = largest(own, (each) => norms(each)[0] / norms(each)[1]);
  const [added, stream] = norms(part);
  return {
    name: "The residual stream",
    section: "network",
    state: { part: part.output, head: -1 },
    text:
      `The vector of ${quote(runTokens()[state.at])} runs upwards, and every sublayer adds to it. The widest curve ` +
      `is that of ${inWords(part)}: it adds a vector of length ${number(added)}, after which the stream has ` +
      `length ${number(stream)}.`,
  };
}

/** The block from which on the lens has the model's prediction. */
function lensStop() {
  const tops = stacks.at(-1).blocks.map((_, block) => lensAt(block, state.at)[0]);
  const [predicted] = tops.at(-1);
  const block = tops.findLastIndex(([id]) => id !== predicted) + 1;
  const [[early, chance]] = tops;
  return {
    name: "The logit lens",
    section: "panels",
    state: { tab: "lens", block },
    text:
      block === 0
        ? `What would the model predict if it ended earlier? After block 0 already ${quote(predicted)}, with ` +
          `${percent(chance)}, and after every later block too.`
        : `What would the model predict if it ended earlier? After block 0 ${quote(early)}, with ` +
          `${percent(chance)}; from block ${block} on ${quote(predicted)}.`,
  };
}

/** The head that looks most at the token about to be written, or else at any earlier token; null without one. */
function findLookup() {
  const kind = isT5 ? "cross-attention" : "self-attention";
  const read = isT5 ? source() : run().ids.slice(0, state.at); // without the current token
  const places = [...read.keys()];
  const same = places.filter((key) => read[key] === run().ids[state.at + 1]);
  const candidates = heads
    .filter(({ part }) => part.stack === "decoder" && part.kind === kind)
    .flatMap(({ part, head }) => (same.length ? same : places).map((key) => ({ part, head, key })));
  if (!candidates.length) return null;
  const weight = ({ part, head, key }) => fromLevel(attentionLevels(part, head, state.at)[key]);
  const best = largest(candidates, weight);
  return { ...best, kind, weight: weight(best), token: read[best.key], isWritten: same.length > 0 };
}

function lookupStop() {
  const found = findLookup();
  if (!found) return null;
  const { part, head, key, kind, isWritten } = found;
  const where = `head ${head} of block ${part.block}`;
  const target = `${quote(found.token)} at position ${key}`;
  const weight = number(found.weight);
  const read = isT5 ? "in the text" : "among the earlier tokens";
  return {
    name: isWritten ? "A head that looks at the answer" : "The head that looks hardest",
    section: "panels",
    state: { part: part.output, head, ...(isT5 ? { src: key } : {}) },
    text: isWritten
      ? `${quote(runTokens()[state.at + 1])}, which is written next, is ${read}. Of all ${kind} heads, ${where} looks at it ` +
        `most: weight ${weight} on ${target}.`
      : `${quote(runTokens()[state.at + 1])}, which is written next, is not ${read}, so no head can find it there. The largest ` +
        `${kind} weight on ${isT5 ? "any" : "an earlier"} token is ${weight}: ${where}, on ${target}.`,
  };
}

/** The same weight, step by step. Its text has numbers once the vectors are unpacked or requested. */
function computationStop() {
  const found = findLookup();
  if (!found || !(live || recording.computations)) return null;
  const { part, head, key } = found;
  const { at } = state;
  const tokens = `The query of ${quote(runTokens()[at])} times the key of ${quote(found.token)}`;
  let row = null;
  return {
    name: "How a weight is computed",
    section: "panels",
    state: { tab: "computation", part: part.output, head, key },
    get text() {
      if (state.run === 0 && computations(part)) row ??= attentionRow(part, head, at);
      if (!row) return `${tokens} …`;
      const scaled = row.scale === 1 ? "" : `; scaled, it is ${decimal(row.scores[key])}`;
      return (
        `${tokens} is ${decimal(row.products[key])}${scaled}. The softmax over the row makes it the weight ` +
        `${decimal(row.weights[key])}; then the values are mixed and written to the stream, each step beside its ` +
        `lines of code.`
      );
    },
  };
}

/** The head that looks most at the token before each token. */
function previousTokenStop() {
  const stack = stacks[0].name;
  const length = isT5 ? source().length : positions();
  if (length < 2) return null;
  const places = Array.from({ length: length - 1 }, (_, key) => key + 1); // without the first
  const weight = ({ part, head }, query) => fromLevel(attentionLevels(part, head, query)[query - 1]);
  const mean = (value) => places.reduce((sum, query) => sum + value(query), 0) / places.length;
  const best = largest(
    heads.filter(({ part }) => part.stack === stack && part.kind === "self-attention"),
    (each) => mean((query) => weight(each, query)),
  );
  const average = mean((query) => weight(best, query));
  const example = places.find((query) => weight(best, query) >= average) ?? 1;
  const even = mean((query) => 1 / (isT5 ? length : query + 1));
  return {
    name: "Looking one token back",
    section: "panels",
    state: { part: best.part.output, head: best.head, [isT5 ? "src" : "at"]: example },
    text:
      `Some heads go by position. Head ${best.head} of ${inWords(best.part)} looks most at the token before each ` +
      `token, with a weight of ${number(average)} on average, where equal weights would be ${number(even)}: ` +
      `the larger, the clearer the line beside the diagonal.`,
  };
}

function beamsStop() {
  const answer = recording.runs.find((each) => each.name === "beams").ids;
  const steps = beamNodes();
  const ranks = steps.map((step) => step.findIndex((node) => node.best)).filter((rank) => rank >= 0);
  const worst = ranks.indexOf(Math.max(...ranks));
  const isGreedy = answer.join() === run().ids.join();
  return {
    name: "Beams",
    section: "panels",
    state: { tab: "beams" },
    text:
      `Beam search keeps ${recording.search.num_beams} texts at once. Its answer, the thick path, ` +
      (ranks[worst] === 0
        ? "is in front at every step"
        : `is only number ${ranks[worst] + 1} at step ${worst + 1} and wins in the end`) +
      `; it is ${isGreedy ? "the same as" : "not"} that of greedy search.`,
  };
}

/** The effect of a change: the share of the answer’s probability that is left, and the new answer. */
function consequence(sweep, index) {
  const { ids, logProbs } = toOutcome(sweep.answers[sweep.answer[index]], sweep, index);
  const answer = recordedAnswer().ids;
  const left = percent(Math.exp(-effect(logProbs)));
  const change = ids.join() === answer.join() ? "stays the same" : `becomes ${textOf(ids)}`;
  return `leaves the answer ${left} of its probability, and greedy search’s answer ${change}`;
}

/** The index of a sweep's largest effect; -1 without a sweep or without an effect. */
function strongest(sweep) {
  if (!sweep?.answers) return -1;
  const effects = sweep.answer.map((_, index) => effect(rowOf(sweep.log_probs, index)));
  const most = Math.max(...effects);
  return most > 0 ? effects.indexOf(most) : -1;
}

function ablationStop() {
  const sweep = content.head_ablations;
  const index = strongest(sweep);
  if (index < 0) return null;
  const { part, head, code } = heads[index];
  return {
    name: "Without a head",
    section: "panels",
    state: { tab: "interventions", interventions: code },
    text:
      `Which head does the answer need most? Switching off head ${head} of ${inWords(part)} ` +
      `${consequence(sweep, index)}.`,
  };
}

function patchingStop() {
  const sweep = content.activation_patches;
  const index = strongest(sweep);
  if (index < 0) return null;
  const [block, at] = [Math.floor(index / source().length), index % source().length];
  const [own, other] = [source()[at], content.other.source[0][at]];
  return {
    name: "A vector from another text",
    section: "panels",
    state: { tab: "interventions", interventions: `${sweep.names[block]}@${at}<${at}` },
    text:
      `At ${quote(own)} (position ${at}), after block ${block}${isT5 ? " of the encoder" : ""}, the stream is ` +
      `replaced by that of the second text, which has ${quote(other)} there. This ${consequence(sweep, index)}.`,
  };
}

/** Mark a stop's section and bring it into view, once per stop. */
function renderTour() {
  const root = byId("tour");
  const stop = tourStops[state.tour - 1];
  for (const section of document.querySelectorAll("main > section"))
    section.classList.toggle("toured", section.id === stop?.section);
  root.hidden = !stop;
  const { text } = stop ?? { text: "" };
  if (byId("tour-text").textContent !== text) byId("tour-text").textContent = text;
  const shown = stop ? `${recording.id} ${state.tour}` : null;
  if (renderTour.shown === shown) return;
  renderTour.shown = shown;
  if (!stop) return;
  byId("tour-count").textContent = `${state.tour} of ${tourStops.length}`;
  byId("tour-name").textContent = stop.name;
  byId("tour-back").disabled = state.tour === 1;
  byId("tour-next").textContent = state.tour === tourStops.length ? "Done" : "Next";
  const section = byId(stop.section);
  const { top } = section.getBoundingClientRect();
  const isNarrow = matchMedia("(max-width: 62rem)").matches;
  if (isNarrow || top < 0 || top > innerHeight / 3) section.scrollIntoView();
  showSelected();
  if (document.activeElement === byId("start")) byId("tour-next").focus();
}

/** Scroll the network so that the selected sublayer is in its upper half, above the tour on a phone. */
function showSelected() {
  const network = byId("network");
  const [box, item] = [network, network.querySelector(".selected")].map((node) => node.getBoundingClientRect());
  const below = item.top - box.top;
  if (below < 0 || below > box.height / 2) network.scrollTop += below - box.height / 3;
}

function buildTour() {
  const go = (step) => {
    const number = state.tour + step;
    if (number > tourStops.length) close();
    else if (number >= 1) openStop(number);
  };
  const close = () => {
    setState({ tour: "" });
    byId("start").focus({ preventScroll: true });
  };
  byId("start").addEventListener("click", () => openStop(1));
  byId("tour-back").addEventListener("click", () => go(-1));
  byId("tour-next").addEventListener("click", () => go(1));
  byId("tour-close").addEventListener("click", close);
  byId("tour").addEventListener("keydown", (event) => {
    const action = { ArrowLeft: () => go(-1), ArrowRight: () => go(1), Escape: close }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
