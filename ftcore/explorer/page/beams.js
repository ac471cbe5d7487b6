/* The beams panel: every candidate of every step, as a tree. */

const STEP = { width: 140, height: 30, top: 22 };
const BEAM_STYLES = {
  running: { background: "var(--card)", "border-color": "var(--stream)" },
  finished: { border: "2px solid var(--good)" },
  "finished, later displaced": { border: "2px dashed var(--good)" },
  unfinished: { border: "1px dotted var(--stream)" },
  pruned: { "border-style": "dashed" },
  "the answer": { background: "var(--accent)" },
};

panels.beams = {
  key: () => "",
  build(root) {
    root.className = "";
    const steps = beamNodes();
    const beams = recording.search.num_beams;
    const candidates = Math.max(...steps.map((step) => step.length));
    const [width, height] = [steps.length * STEP.width, STEP.top + candidates * STEP.height];
    const lines = svgElement("svg", { width, height, "aria-hidden": "true" });
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
            svgElement("path", {
              class: kind,
              d: `M ${start} C ${start[0] + 14} ${start[1]}, ${x - 14} ${y + 13}, ${x} ${y + 13}`,
            }),
          );
        }
        const box = button(
          {
            class: `${node.status} ${node.best ? "best" : ""}`,
            style: { left: `${x}px`, top: `${y}px` },
            "data-key": node.name,
            click: () => setState({ beam: node.name }),
            "aria-label":
              `Step ${number + 1}, rank ${rank + 1}: ${truncate(piece(node.token), 40)}, ` +
              `score ${scoreText(node.score)}, ${node.status}`,
          },
          tokenSpan(node.token),
          element("span", { class: "number" }, scoreText(node.score)),
        );
        tree.append(box);
        this.nodes.push([node, box]);
      });
    });
    this.detail = element("div", { "aria-live": "polite" });
    appendAll(
      root,
      headLine("beams", element("h3", {}, `Beam search with ${beams} beams`)),
      sentence(
        `Each step considers the ${candidates} best one-token extensions of the running beams. `,
        "Each of these texts is a hypothesis. Its score is the sum of its tokens’ log-probabilities, divided " +
          "by its length when it ends.",
      ),
      element(
        "div",
        { class: "key" },
        ...Object.entries(BEAM_STYLES).map(([name, style]) =>
          element("span", {}, element("i", { style }), name),
        ),
      ),
      scrolling(tree),
      this.detail,
      this.asTable(steps),
    );
    rovingTabIndex(tree);
    resetTabStop(tree);
  },
  update() {
    const selected =
      this.nodes.find(([node]) => node.name === state.beam) ?? this.nodes.findLast(([node]) => node.best);
    for (const [node, box] of this.nodes) box.setAttribute("aria-pressed", node === selected?.[0]);
    if (!selected) return;
    const [node] = selected;
    replaceContent(
      this.detail,
      element(
        "p",
        { class: "answer" },
        element("b", {}, node.best ? "answer " : "text "),
        ...node.tokens.map((id) => tokenSpan(id)),
      ),
      element(
        "p",
        {},
        `Score ${scoreText(node.score)}; `,
        `probability of the last token ${percent(Math.exp(node.log_prob))}. `,
        STATUS_TEXT[node.status],
        node.final_score === null ? "" : ` Length-normalized score: ${scoreText(node.final_score)}.`,
      ),
    );
  },
  asTable: (steps) => {
    const details = element("details", {}, element("summary", {}, "As a table"));
    details.addEventListener("toggle", () => {
      if (details.querySelector("table")) return;
      details.append(
        inScroller(
          {},
          tableHead("step", "rank", "text so far", "score", ""),
          element(
            "tbody",
            {},
            ...steps.flatMap((step, number) =>
              step.map((node, rank) => {
                const text = element("span", {}, ...node.tokens.map((id) => tokenSpan(id)));
                const cells = [`${number + 1}`, `${rank + 1}`, text, scoreText(node.score), node.status];
                return element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
              }),
            ),
          ),
        ),
      );
    });
    return details;
  },
};

const scoreText = (score) => score.toFixed(2);
const STATUS_TEXT = {
  running: "Kept as a running beam.",
  unfinished: "Still unfinished when the search ended.",
  pruned: "Pruned: others scored higher.",
  finished: "Finished, and among the best hypotheses.",
  displaced: "Finished, but displaced by better hypotheses.",
};

/** The candidates of every step, with their parent candidate and all generated tokens.

   Beams that run in the last step are not extended: they are unfinished. */
function beamNodes() {
  const answer = recording.runs.find((each) => each.name === "beams");
  const generated = answer.ids.slice(answer.prompt_length);
  const steps = [];
  for (const step of recording.beams) {
    steps.push(
      step.map((candidate) => {
        const from = candidate.parent === null ? null : steps.at(-1)[candidate.parent];
        const tokens = [...(from?.tokens ?? []), candidate.token];
        const isCutOff = step === recording.beams.at(-1) && candidate.status === "running";
        const status = isCutOff ? "unfinished" : candidate.status;
        return { ...candidate, status, from, tokens, best: tokens.every((id, i) => id === generated[i]) };
      }),
    );
  }
  return steps;
}
