/* The interventions panel: ablated heads and patched activations, and their effect on the greedy answer.
   A recorded page looks sweeps up; a live page requests the rest. */

const heads = Object.values(parts)
  .filter((part) => part.pattern)
  .flatMap((part) =>
    Array.from({ length: model.heads }, (_, head) => ({ part, head, code: `${part.z}:${head}` })),
  );

/** The activations that can be patched, each with its name in every block. Offline, only the first. */
function patchKinds() {
  return (live ? stacks : stacks.slice(0, 1)).flatMap((stack) => {
    const prefix = isT5 ? `${stack.name}: ` : "";
    const residual = {
      title: `${prefix}residual stream after`,
      stack: stack.name,
      names: stack.blocks.map((block) => block.at(-1).residual),
    };
    const outputs = stack.blocks[0].map((part, i) => ({
      title: `${prefix}output of ${part.kind} in`,
      stack: stack.name,
      names: stack.blocks.map((block) => block[i].output),
    }));
    return live ? [residual, ...outputs] : [residual];
  });
}

/** Decode "decoder.z.1:3", head 3 ablated, or "resid_post.0@5<7", position 5 patched from position 7. */
function parseIntervention(code) {
  const ablation = code.match(/^([\w.]+):(\d+)$/);
  if (ablation) return { z: ablation[1], head: Number(ablation[2]) };
  const patch = code.match(/^([\w.]+)@(\d+)<(\d+)$/);
  return patch ? { name: patch[1], position: Number(patch[2]), other_position: Number(patch[3]) } : null;
}

const chosenInterventions = () => state.interventions.split(";").filter((code) => parseIntervention(code));

/** Toggle an intervention. In a live page several can be combined. */
function toggleIntervention(code) {
  const chosen = chosenInterventions();
  const others = chosen.filter((each) => each !== code);
  const wasChosen = others.length < chosen.length;
  if (live && state.combine) setState({ interventions: (wasChosen ? others : [...chosen, code]).join(";") });
  else setState({ interventions: wasChosen && chosen.length === 1 ? "" : code });
}

/** The recorded greedy answer: its token ids, their log-probabilities, and next-token probabilities. */
function recordedAnswer() {
  const { ids, prompt_length, next } = recording.runs[0];
  const answer = ids.slice(prompt_length);
  const unscaled = recording.temperatures.indexOf(1);
  const logSum = (step) => rowOf(next.log_sums, prompt_length - 1 + step)[unscaled];
  return {
    ids: answer,
    logProbs: answer.map((_, step) => next.chosen_logit.values[prompt_length - 1 + step] - logSum(step)),
    /** The probability of a token at a step; null if it was not recorded. */
    probability(step, id) {
      const rank = rowOf(next.ids, prompt_length - 1 + step).indexOf(id);
      return rank < 0 ? null : Math.exp(rowOf(next.logits, prompt_length - 1 + step)[rank] - logSum(step));
    },
  };
}

/** The step of the greedy answer that the current position generates. */
const currentStep = () => {
  const { ids, prompt_length } = recording.runs[0];
  return Math.max(0, Math.min(state.at - prompt_length + 1, ids.length - prompt_length - 1));
};

/** The decrease in log-probability (nats) of the answer, or of its current token. */
function effect(logProbs) {
  const before = recordedAnswer().logProbs;
  if (state.effect === "token") return before[currentStep()] - logProbs[currentStep()];
  return before.reduce((sum, value, step) => sum + value - logProbs[step], 0);
}

/** An outcome from arrays whose rows, after `indices`, are steps of the answer. */
const toOutcome = (ids, arrays, ...indices) => ({
  ids,
  logProbs: indices.length ? rowOf(arrays.log_probs, ...indices) : arrays.log_probs.values,
  next: (step) => {
    const logProbs = rowOf(arrays.next_log_probs, ...indices, step);
    return Array.from(rowOf(arrays.next_ids, ...indices, step), (id, rank) => [id, Math.exp(logProbs[rank])]);
  },
});

/** The sweep that has an intervention, and the index there; null if none has. */
function findInSweep(code) {
  const change = parseIntervention(code);
  let [sweep, index] = [content.head_ablations, heads.findIndex((each) => each.code === code)];
  if (change.name) {
    sweep = content.activation_patches;
    const block = sweep?.names?.indexOf(change.name) ?? -1;
    const isRecorded = change.position === change.other_position && change.position < source().length;
    index = block < 0 || !isRecorded ? -1 : block * source().length + change.position;
  }
  return sweep?.answers && index >= 0 ? [sweep, index] : null;
}

panels.interventions = {
  key: () =>
    `${state.patchKind} ${Boolean(content.head_ablations)} ${Boolean(content.activation_patches)}`,
  build(root) {
    root.className = "";
    this.outcome = element("div", { class: "result", "aria-live": "polite" });
    this.buttons = new Map(); // button -> [function that gives its code, description]
    const effects = [
      element("option", { value: "answer" }, "the whole answer"),
      element("option", { value: "token" }, "the token at the current position"),
    ];
    const combine = {
      type: "checkbox",
      id: "combine",
      change: (event) => setState({ combine: event.target.checked }),
    };
    appendAll(
      root,
      headLine("interventions", element("h3", {}, "What changes the answer")),
      sentence(
        "Numbers: the decrease in log-probability of the greedy answer, in nats. ",
        "Click one to see the new answer.",
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
            { id: "effect", change: (event) => setState({ effect: event.target.value }) },
            ...effects,
          ),
        ),
        live ? element("label", {}, element("input", combine), " combine several") : null,
        button({ click: () => setState({ interventions: "" }), id: "undo" }, "Undo all"),
      ),
      this.outcome,
      element("div", { class: "interventions" }, this.buildAblations(), this.buildPatches()),
    );
    root.querySelectorAll(".effects").forEach((table) => {
      rovingTabIndex(table);
      resetTabStop(table);
    });
  },
  /** A row for each attention, a column for each head. */
  buildAblations() {
    const rows = Object.values(parts)
      .filter((part) => part.pattern)
      .reverse();
    const indices = Array.from({ length: model.heads }, (_, head) => head);
    return element(
      "div",
      {},
      headLine("ablation", element("h3", {}, "Head ablation")),
      sentence("The head’s output is zero at every position."),
      this.sweepNote("head_ablations", "head-ablations"),
      effectTable(
        "head-ablations",
        ["head", ...indices],
        rows.map((part) => [
          element(
            "th",
            { scope: "row" },
            title(part).replace(", self-attention", ", self").replace("-attention", ""),
          ),
          ...indices.map((head) =>
            element(
              "td",
              {},
              this.cell(() => `${part.z}:${head}`, `${title(part)}, head ${head}`),
            ),
          ),
        ]),
      ),
    );
  },
  /** A row for each position, a column for each block. */
  buildPatches() {
    const kinds = patchKinds();
    const kind = kinds[state.patchKind];
    const heading = headLine("patching", element("h3", {}, "Activation patching"));
    if (!content.other) {
      const hint = live
        ? "Enter a second text above to patch activations from it."
        : "No second text was given when this page was recorded: python -m ftcore.explore --other.";
      return element("div", {}, heading, sentence(hint));
    }
    const isDecoder = isT5 && kind.stack === "decoder";
    const own = isDecoder ? recording.runs[0].ids.slice(0, -1) : source();
    const characters = isDecoder ? recording.runs[0].characters : recording.source_characters;
    const others = isDecoder ? content.other.ids.slice(0, -1) : content.other.source[0];
    const sameLength = own.length === others.length;
    const from = (at) => Math.min(state.from ?? at, others.length - 1);
    const differs = { style: { "--weight": "0.8", "--hue": "var(--cross)" } };
    return element(
      "div",
      {},
      heading,
      sentence("Columns are blocks. At one position, the activation takes its value from the second text."),
      live
        ? this.select(
            "kind",
            "Activation ",
            kinds.map((each, i) => [i, `${each.title} each block`]),
          )
        : null,
      state.patchKind === 0
        ? this.sweepNote("activation_patches", "activation-patches")
        : null,
      live
        ? this.select("from", "from the second text’s position ", [
            ["", sameLength ? "the same" : "the nearest"],
            ...others.map((id, at) => [at, `${at}: ${label(id, 30)}`]),
          ])
        : null,
      effectTable(
        "activation-patches",
        ["this text", "second text", ...kind.names.keys()],
        own.map((id, at) => [
          element("th", { scope: "row" }, tokenSpan(characters[at] ?? id)),
          element(
            "td",
            {},
            at < others.length ? tokenSpan(others[at], others[at] === id ? {} : differs) : "",
          ),
          ...kind.names.map((name, block) => {
            const description = `Position ${at}, ${label(characters[at] ?? id, 30)}, ${kind.title} block ${block}`;
            const canChoose = live || sameLength;
            return element(
              "td",
              {},
              canChoose ? this.cell(() => `${name}@${at}<${from(at)}`, description) : "",
            );
          }),
        ]),
      ),
    );
  },
  select(id, text, options) {
    const change = (event) => {
      const { value } = event.target;
      if (id === "kind") setState({ patchKind: Number(value), interventions: "" });
      else setState({ from: value === "" ? null : Number(value) });
    };
    const children = options.map(([value, option]) => element("option", { value: String(value) }, option));
    return element("label", { class: "wide" }, text, element("select", { id, change }, ...children));
  },
  cell(code, description) {
    const node = button({ click: () => toggleIntervention(code()), "data-key": code() });
    this.buttons.set(node, [code, description]);
    return node;
  },
  /** Why there is no sweep. A live page requests it when the panel is opened. */
  sweepNote(name, path) {
    const sweep = content[name];
    if (sweep?.answers) return null;
    if (!sweep) runSweep(name, path);
    return sentence(sweep?.skipped ?? "Measuring …");
  },
  update() {
    byId("effect").value = state.effect;
    if (byId("combine")) byId("combine").checked = state.combine;
    if (byId("kind")) byId("kind").value = state.patchKind;
    if (byId("from")) byId("from").value = state.from ?? "";
    const chosen = new Set(chosenInterventions());
    byId("undo").disabled = chosen.size === 0;
    for (const [node, [code, description]] of this.buttons) {
      const found = findInSweep(code());
      const value = found ? effect(rowOf(found[0].log_probs, found[1])) : null;
      const size = Math.abs(value);
      node.setAttribute("aria-pressed", chosen.has(code()));
      node.textContent = value === null ? "?" : size < 0.05 ? "·" : value.toFixed(size < 10 ? 1 : 0);
      node.style.setProperty("--weight", (1 - Math.exp(-size)).toFixed(3));
      node.style.setProperty("--shade", value < 0 ? "var(--good)" : "var(--bad)");
      node.title = value === null ? `${description}: not measured` : `${description}: ${number(value)} nats less likely`;
      node.setAttribute("aria-label", node.title);
    }
    this.updateOutcome();
  },
  updateOutcome() {
    const codes = chosenInterventions();
    if (!codes.length) {
      const hint = "No intervention. Choose a head or a patch below.";
      return replaceContent(this.outcome, sentence(hint));
    }
    const found = codes.length === 1 ? findInSweep(codes[0]) : null;
    const sweep = found && toOutcome(found[0].answers[found[0].answer[found[1]]], ...found);
    const now = sweep ?? (live ? requestOutcome(codes) : null);
    if (!now) {
      const hint = live
        ? "Computing …"
        : "This page has recorded single interventions only. With --serve, any can be computed.";
      return replaceContent(this.outcome, element("p", {}, hint));
    }
    const { ids, logProbs, probability } = recordedAnswer();
    const step = currentStep();
    const answer = (id, name, ...tokens) =>
      element("p", { class: "answer", id }, element("b", {}, name), ...tokens);
    const bars = (id, caption, rows) =>
      element("table", { class: "bars", id }, element("caption", {}, caption), element("tbody", {}, ...rows));
    replaceContent(
      this.outcome,
      element("p", {}, `Intervention: ${codes.map(describeIntervention).join("; ")}`),
      answer("answer-was", "before ", ...ids.map((id) => tokenSpan(id))),
      answer(
        "answer-is",
        "now ",
        ...now.ids.map((id, i) => tokenSpan(id, id === ids[i] ? {} : { class: "token differs" })),
      ),
      element(
        "div",
        { class: "interventions" },
        bars(
          null,
          "New probability of the recorded answer’s tokens. Thin line: before.",
          ids.map((id, i) => panels.next.row(i, id, Math.exp(now.logProbs[i]), Math.exp(logProbs[i]), false)),
        ),
        bars(
          "next-now",
          `New probabilities at the step of ${quote(ids[step])}. Thin line: before.`,
          now
            .next(step)
            .map(([id, share], rank) =>
              panels.next.row(rank, id, share, probability(step, id), id === ids[step]),
            ),
        ),
      ),
    );
  },
};

const effectTable = (id, columns, rows) =>
  inScroller(
    { class: "effects", id },
    tableHead(...columns.map(String)),
    element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells))),
  );

function describeIntervention(code) {
  const change = parseIntervention(code);
  if (change.z) {
    const part = Object.values(parts).find((each) => each.z === change.z);
    return part ? `${title(part)}, head ${change.head} ablated` : code;
  }
  const { name, position, other_position } = change;
  const kind = patchKinds().find((each) => each.names.includes(name));
  if (!kind) return code;
  const where = `${kind.title} block ${kind.names.indexOf(name)}, position ${position}`;
  return `${where}: from the second text, position ${other_position}`;
}
