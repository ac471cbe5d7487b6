/* The panel of beams: every candidate of every step, as a tree. */

const STEP = { width: 140, height: 30, top: 22 };

panels.beams = {
  key: () => "",
  build(root) {
    root.className = "";
    const steps = beamNodes();
    const beams = recording.search.num_beams;
    const most = Math.max(...steps.map((step) => step.length));
    const [width, height] = [steps.length * STEP.width, STEP.top + most * STEP.height];
    const lines = drawn("svg", { width, height, "aria-hidden": "true" });
    const tree = element(
      "div",
      { class: "beams", style: { width: `${width}px`, height: `${height}px` } },
      lines,
    );
    this.nodes = [];
    steps.forEach((step, number) => {
      tree.append(
        element(
          "span",
          { class: "step-name", style: { left: `${number * STEP.width}px` } },
          `step ${number + 1}`,
        ),
      );
      step.forEach((node, rank) => {
        const [x, y] = [number * STEP.width, STEP.top + rank * STEP.height];
        Object.assign(node, { x, y, name: `${number}.${rank}` });
        if (node.from) {
          const start = [node.from.x + 115, node.from.y + 13];
          const kind = node.best ? "best" : node.status === "pruned" ? "" : "kept";
          lines.append(
            drawn("path", {
              class: kind,
              d: `M ${start} C ${start[0] + 14} ${start[1]}, ${x - 14} ${y + 13}, ${x} ${y + 13}`,
            }),
          );
        }
        const made = button(
          {
            class: `${node.status} ${node.best ? "best" : ""}`,
            style: { left: `${x}px`, top: `${y}px` },
            "data-key": node.name,
            click: () => look({ beam: node.name }),
            "aria-label":
              `Step ${number + 1}, rank ${rank + 1}: ${short(piece(node.token), 40)}, ` +
              `score ${scoreText(node.score)}, ${node.status}`,
          },
          token(node.token),
          element("span", { class: "number" }, scoreText(node.score)),
        );
        tree.append(made);
        this.nodes.push([node, made]);
      });
    });
    this.detail = element("div", { "aria-live": "polite" });
    fill(
      root,
      element("h3", {}, `Beam search with ${beams} beams`),
      element(
        "p",
        { class: "soft" },
        `Every step looks at the ${most} best one-token extensions of the running beams. `,
        "The score is a sum of log-probabilities; when a hypothesis ends it is divided by its length.",
      ),
      element(
        "div",
        { class: "key" },
        element(
          "span",
          {},
          element("i", { style: { background: "var(--card)", "border-color": "var(--stream)" } }),
          "goes on",
        ),
        element("span", {}, element("i", { style: { border: "2px solid var(--good)" } }), "finished"),
        element(
          "span",
          {},
          element("i", { style: { border: "2px dashed var(--good)" } }),
          "finished, displaced later",
        ),
        element("span", {}, element("i", { style: { "border-style": "dashed" } }), "pruned"),
        element("span", {}, element("i", { style: { background: "var(--accent)" } }), "the answer"),
      ),
      element("div", { class: "scroller" }, tree),
      this.detail,
      this.asTable(steps),
    );
    roving(tree);
    tabStop(tree);
  },
  update() {
    const selected =
      this.nodes.find(([node]) => node.name === state.beam) ?? this.nodes.findLast(([node]) => node.best);
    for (const [node, made] of this.nodes) made.setAttribute("aria-pressed", node === selected?.[0]);
    if (!selected) return;
    const [node] = selected;
    refill(
      this.detail,
      element(
        "p",
        { class: "answer" },
        element("b", {}, node.best ? "answer " : "text "),
        ...node.tokens.map((id) => token(id)),
      ),
      element(
        "p",
        {},
        `Score ${scoreText(node.score)}; `,
        `its last token had the probability ${percent(Math.exp(node.log_prob))}. `,
        FATES[node.status],
        node.final_score === null
          ? ""
          : ` Divided by its length, the score is ${scoreText(node.final_score)}.`,
      ),
    );
  },
  asTable: (steps) => {
    const details = element("details", {}, element("summary", {}, "As a table"));
    details.addEventListener("toggle", () => {
      if (details.querySelector("table")) return;
      details.append(
        element(
          "div",
          { class: "scroller" },
          element(
            "table",
            {},
            tableHead("step", "rank", "text so far", "score", ""),
            element(
              "tbody",
              {},
              ...steps.flatMap((step, number) =>
                step.map((node, rank) =>
                  element(
                    "tr",
                    {},
                    ...[
                      String(number + 1),
                      String(rank + 1),
                      element("span", {}, ...node.tokens.map((id) => token(id))),
                      scoreText(node.score),
                      node.status,
                    ].map((cell) => element("td", {}, cell)),
                  ),
                ),
              ),
            ),
          ),
        ),
      );
    });
    return details;
  },
};

const scoreText = (score) => score.toFixed(2);
const FATES = {
  running: "It went on.",
  pruned: "It was pruned: others were likelier.",
  finished: "It ended, and is among the best.",
  displaced: "It ended, but better ones came later.",
};

/** The candidates of every step, each with the one that it goes on from and all that it says. */
function beamNodes() {
  const answer = recording.runs.find((one) => one.name === "beams");
  const written = answer.ids.slice(answer.prompt_length);
  const steps = [];
  for (const step of recording.beams) {
    steps.push(
      step.map((candidate) => {
        const from = candidate.parent === null ? null : steps.at(-1)[candidate.parent];
        const tokens = [...(from?.tokens ?? []), candidate.token];
        return { ...candidate, from, tokens, best: tokens.every((id, place) => id === written[place]) };
      }),
    );
  }
  return steps;
}
