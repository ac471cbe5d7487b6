/* The panel of changes: heads knocked out, activations patched from the second text, and what becomes of the
   answer. What was recorded is looked up; a live page asks for the rest. */

/** The kinds of activations that can be patched, a name for every block. Offline, the first was recorded. */
function kindsOfPatch() {
  const kinds = [];
  for (const stack of live ? stacks : stacks.slice(0, 1)) {
    const where = isT5 ? `${stack.name}: ` : "";
    kinds.push({
      title: `${where}residual stream after`,
      stack: stack.name,
      names: stack.blocks.map((block) => block.at(-1).after),
    });
    if (live) {
      stack.blocks[0].forEach((part, number) =>
        kinds.push({
          title: `${where}what ${part.kind} adds in`,
          stack: stack.name,
          names: stack.blocks.map((block) => block[number].writes),
        }),
      );
    }
  }
  return kinds;
}

/** "decoder.z.1:3" is head 3 knocked out, "encoder.resid_post.0@5<7" position 5 from the second text's 7. */
function readChange(word) {
  const knock = word.match(/^([\w.]+):(\d+)$/);
  if (knock) return { z: knock[1], head: Number(knock[2]) };
  const patch = word.match(/^([\w.]+)@(\d+)<(\d+)$/);
  return patch ? { name: patch[1], position: Number(patch[2]), other_position: Number(patch[3]) } : null;
}

const changes = () => state.changes.split(";").filter((word) => readChange(word));
const knockedOut = () => new Set(changes());
const heads = Object.values(parts)
  .filter((part) => part.pattern)
  .flatMap((part) =>
    Array.from({ length: model.heads }, (_, head) => ({ part, head, word: `${part.z}:${head}` })),
  );

/** Choose a change; the same again takes it back. Live, several can be combined. */
function choose(word) {
  const now = changes();
  const without = now.filter((one) => one !== word);
  if (live && state.combine)
    look({ changes: (without.length < now.length ? without : [...now, word]).join(";") });
  else look({ changes: without.length < now.length && now.length === 1 ? "" : word });
}

/** The answer's tokens, which are the first run's, and what the model thought of each. */
function answerBefore() {
  const first = recording.runs[0];
  const ids = first.ids.slice(first.prompt_length);
  const one = recording.temperatures.indexOf(1);
  const logs = ids.map((_, step) => {
    const at = first.prompt_length - 1 + step;
    return first.next.chosen_logit.values[at] - rowOf(first.next.log_sums, at)[one];
  });
  return { ids, logs };
}

/** Which token of the answer the current position writes. */
const currentStep = () => {
  const first = recording.runs[0];
  return Math.max(
    0,
    Math.min(state.at - first.prompt_length + 1, first.ids.length - first.prompt_length - 1),
  );
};

/** How much less likely (nats) the answer, or its current token, has become. */
function effect(logs) {
  const before = answerBefore().logs;
  if (state.effect === "token") return before[currentStep()] - logs[currentStep()];
  return before.reduce((sum, one, step) => sum + one - logs[step], 0);
}

/** One outcome out of a sweep, as the server would have answered. */
function outcomeOf(sweep, index) {
  return {
    ids: sweep.answers[sweep.answer[index]],
    log_probabilities: rowOf(sweep.log_probabilities, index),
    next: (step) =>
      Array.from(rowOf(sweep.next_ids, index, step), (id, rank) => [
        id,
        Math.exp(rowOf(sweep.next_log_probabilities, index, step)[rank]),
      ]),
  };
}

/** Where in a sweep a change is, or null. */
function placeInSweep(word) {
  const change = readChange(word);
  if (change.z && content.knock_outs?.answers) {
    const index = heads.findIndex((one) => one.word === word);
    return index < 0 ? null : [content.knock_outs, index];
  }
  const sweep = content.transplants;
  if (change.name && sweep?.answers && change.position === change.other_position) {
    const block = sweep.names.indexOf(change.name);
    return block < 0 || change.position >= source().length
      ? null
      : [sweep, block * source().length + change.position];
  }
  return null;
}

panels.change = {
  key: () => `${state.kind} ${Boolean(content.knock_outs?.answers)} ${Boolean(content.transplants?.answers)}`,
  build(root) {
    root.className = "";
    this.outcome = element("div", { class: "result", "aria-live": "polite" });
    this.buttons = new Map(); // the word of a change -> its button and how to find its effect
    fill(
      root,
      element("h3", {}, "Change something inside, and see what the model says"),
      element(
        "p",
        { class: "soft" },
        "A number: how much less likely the greedy answer became, in nats ",
        "(its log-probability before, minus now). Click one to see what was written instead.",
      ),
      element(
        "div",
        { class: "head-line" },
        element(
          "label",
          {},
          "Effect on ",
          element(
            "select",
            { id: "effect", change: (event) => look({ effect: event.target.value }) },
            element("option", { value: "answer" }, "the whole answer"),
            element("option", { value: "token" }, "the token at the current position"),
          ),
        ),
        live
          ? element(
              "label",
              {},
              element("input", {
                type: "checkbox",
                id: "combine",
                change: (event) => look({ combine: event.target.checked }),
              }),
              " combine several",
            )
          : null,
        button({ click: () => look({ changes: "" }), id: "undo" }, "Undo all"),
      ),
      this.outcome,
      element("div", { class: "change" }, this.buildKnockOuts(), this.buildTransplants()),
    );
    root.querySelectorAll(".effects").forEach((table) => {
      roving(table);
      tabStop(table);
    });
  },
  /** A row for each attention, a column for each head. */
  buildKnockOuts() {
    const rows = Object.values(parts)
      .filter((part) => part.pattern)
      .reverse();
    return element(
      "div",
      {},
      element("h3", {}, "Knock a head out"),
      element("p", { class: "soft" }, "It then adds nothing to the residual stream, at no token."),
      this.sweepNote("knock_outs", "/knock-outs", "Measure all heads"),
      element(
        "div",
        { class: "scroller" },
        element(
          "table",
          { class: "effects", id: "knock-outs" },
          element(
            "thead",
            {},
            element(
              "tr",
              {},
              element("th", {}, "head"),
              ...Array.from({ length: model.heads }, (_, head) =>
                element("th", { scope: "col" }, String(head)),
              ),
            ),
          ),
          element(
            "tbody",
            {},
            ...rows.map((part) =>
              element(
                "tr",
                {},
                element(
                  "th",
                  { scope: "row" },
                  title(part).replace(", self-attention", ", self").replace("-attention", ""),
                ),
                ...Array.from({ length: model.heads }, (_, head) =>
                  element("td", {}, this.cell(`${part.z}:${head}`, `${title(part)}, head ${head}`)),
                ),
              ),
            ),
          ),
        ),
      ),
    );
  },
  /** A row for each position, a column for each block. */
  buildTransplants() {
    const kinds = kindsOfPatch();
    const kind = kinds[state.kind];
    const root = element("div", {}, element("h3", {}, "Patch from a second text"));
    if (!content.other) {
      fill(
        root,
        element(
          "p",
          { class: "soft" },
          live
            ? "Give a second text above: its activations can then be put in the place of this text’s."
            : "No second text was given when this page was recorded: python -m ftcore.explore --other.",
        ),
      );
      return root;
    }
    const inEncoder = isT5 && kind.stack === "encoder";
    const own = isT5 && !inEncoder ? recording.runs[0].ids.slice(0, -1) : source();
    const others = isT5 && !inEncoder ? content.other.ids.slice(0, -1) : content.other.source[0];
    const corresponds = own.length === others.length;
    root.append(
      element("p", { class: "soft" }, "At one token, the activation becomes what it is in the second text."),
    );
    if (live) {
      root.append(
        element(
          "label",
          { class: "wide" },
          "Activation ",
          element(
            "select",
            { id: "kind", change: (event) => look({ kind: Number(event.target.value), changes: "" }) },
            ...kinds.map((one, number) =>
              element(
                "option",
                { value: number, selected: number === state.kind },
                `${one.title} each block`,
              ),
            ),
          ),
        ),
      );
    }
    const canChoose = live || corresponds;
    if (state.kind === 0) fill(root, this.sweepNote("transplants", "/transplants", "Measure all"));
    if (live) {
      root.append(
        element(
          "label",
          { class: "wide" },
          "from the second text’s position ",
          element(
            "select",
            {
              id: "from",
              change: (event) =>
                look({ from: event.target.value === "" ? null : Number(event.target.value) }),
            },
            element("option", { value: "" }, corresponds ? "that is the same" : "nearest in number"),
            ...others.map((id, at) => element("option", { value: at }, `${at}: ${marked(id, 30)}`)),
          ),
        ),
      );
    }
    const from = (at) => Math.min(state.from ?? at, others.length - 1);
    root.append(
      element(
        "div",
        { class: "scroller" },
        element(
          "table",
          { class: "effects", id: "transplants" },
          element(
            "thead",
            {},
            element(
              "tr",
              {},
              element("th", { scope: "col" }, "this text"),
              element("th", { scope: "col" }, "second text"),
              ...kind.names.map((_, block) => element("th", { scope: "col" }, `${block}`)),
            ),
          ),
          element(
            "tbody",
            {},
            ...own.map((id, at) =>
              element(
                "tr",
                {},
                element("th", { scope: "row" }, token(id)),
                element(
                  "td",
                  {},
                  at < others.length
                    ? token(
                        others[at],
                        others[at] === id ? {} : { style: { "--weight": "0.8", "--hue": "var(--cross)" } },
                      )
                    : "",
                ),
                ...kind.names.map((name, block) =>
                  element(
                    "td",
                    {},
                    canChoose
                      ? this.cell(
                          () => `${name}@${at}<${from(at)}`,
                          `Position ${at}, ${short(piece(id), 30)}, ${kind.title} block ${block}`,
                        )
                      : "",
                  ),
                ),
              ),
            ),
          ),
        ),
      ),
    );
    return root;
  },
  cell(word, says) {
    const read = typeof word === "function" ? word : () => word;
    const made = button({ click: () => choose(read()), "data-key": read() });
    this.buttons.set(made, [read, says]);
    return made;
  },
  /** What a page that cannot compute lacks, or how to have everything computed. */
  sweepNote(name, path, says) {
    const sweep = content[name];
    if (sweep?.answers) return null;
    if (!live) return element("p", { class: "soft missing" }, sweep?.missing ?? "");
    return element(
      "p",
      {},
      sweep?.missing
        ? element("span", { class: "soft" }, sweep.missing)
        : button({ click: () => measure(name, path) }, says),
    );
  },
  update() {
    byId("effect").value = state.effect;
    if (byId("combine")) byId("combine").checked = state.combine;
    if (byId("from")) byId("from").value = state.from ?? "";
    byId("undo").disabled = changes().length === 0;
    const chosen = new Set(changes());
    for (const [made, [read, says]] of this.buttons) {
      const word = read();
      const where = placeInSweep(word);
      const value = where ? effect(rowOf(where[0].log_probabilities, where[1])) : null;
      made.setAttribute("aria-pressed", chosen.has(word));
      made.textContent =
        value === null ? "" : Math.abs(value) < 0.05 ? "·" : value.toFixed(Math.abs(value) < 10 ? 1 : 0);
      made.style.setProperty("--weight", value === null ? 0 : (1 - Math.exp(-Math.abs(value))).toFixed(3));
      made.style.setProperty("--shade", value !== null && value < 0 ? "var(--good)" : "var(--bad)");
      made.setAttribute("aria-label", value === null ? says : `${says}: ${number(value)} nats less likely`);
      made.title = made.getAttribute("aria-label");
    }
    this.showOutcome();
  },
  showOutcome() {
    const words = changes();
    if (!words.length) {
      refill(
        this.outcome,
        element("p", { class: "soft" }, "Nothing is changed. Choose a head or a patch below."),
      );
      return;
    }
    const where = words.length === 1 ? placeInSweep(words[0]) : null;
    const now = where ? outcomeOf(...where) : live ? askOutcome(words) : null;
    if (!now) {
      refill(
        this.outcome,
        element(
          "p",
          {},
          live
            ? "Computing …"
            : "This page holds the changes that were recorded, one at a time. With --serve any can be made.",
        ),
      );
      return;
    }
    const { ids, logs } = answerBefore();
    const step = currentStep();
    const before = nextTokensOfFirst(step);
    refill(
      this.outcome,
      element("p", {}, `Changed: ${words.map(inWords).join("; ")}`),
      element(
        "p",
        { class: "answer", id: "answer-was" },
        element("b", {}, "before "),
        ...ids.map((id) => token(id)),
      ),
      element(
        "p",
        { class: "answer", id: "answer-is" },
        element("b", {}, "now "),
        ...now.ids.map((id, at) => token(id, id === ids[at] ? {} : { class: "token differs" })),
      ),
      element(
        "div",
        { class: "change" },
        element(
          "table",
          { class: "bars" },
          element("caption", {}, "Probability of the first answer’s tokens now. The thin line: before."),
          element(
            "tbody",
            {},
            ...ids.map((id, at) =>
              panels.next.row(at, id, Math.exp(now.log_probabilities[at]), Math.exp(logs[at]), false),
            ),
          ),
        ),
        element(
          "table",
          { class: "bars", id: "next-now" },
          element("caption", {}, `In place of ${quoted(ids[step])} now. The thin line: before.`),
          element(
            "tbody",
            {},
            ...now
              .next(step)
              .map(([id, one], rank) => panels.next.row(rank, id, one, before(id), id === ids[step])),
          ),
        ),
      ),
    );
  },
};

/** A change in words. */
function inWords(word) {
  const change = readChange(word);
  if (change.z) {
    const part = Object.values(parts).find((one) => one.z === change.z);
    return part ? `${title(part)}, head ${change.head} knocked out` : word;
  }
  const { name, position, other_position } = change;
  return `${name} at position ${position} from the second text’s position ${other_position}`;
}

/** A token's probability, before any change, at a step of the first run's answer; null if not recorded. */
function nextTokensOfFirst(step) {
  const first = recording.runs[0];
  const at = first.prompt_length - 1 + step;
  const one = recording.temperatures.indexOf(1);
  return (id) => {
    const rank = rowOf(first.next.ids, at).indexOf(id);
    return rank < 0
      ? null
      : Math.exp(rowOf(first.next.logits, at)[rank] - rowOf(first.next.log_sums, at)[one]);
  };
}
