/* The network diagram: the residual stream and its sublayers. */

const updaters = []; // functions that redraw what depends on the state
const STREAM_X = 18; // x of the residual stream in its column

function buildNetwork() {
  updaters.length = 0;
  const columns = stacks.map((stack) => {
    const isDecoder = stack.name === "decoder";
    const rows = [];
    stack.blocks.forEach((block, number) => {
      block.forEach((part) => rows.push(buildPart(parts[part.output])));
      rows.push(buildStream(stack, block.at(-1).residual, parts[block.at(-1).output], number));
    });
    rows.unshift(buildStream(stack, stack.input, parts[stack.blocks[0][0].output], null));
    rows.push(
      isDecoder
        ? buildNext()
        : element(
            "div",
            { class: "between" },
            svgElement("svg"),
            element("span", { class: "soft" }, "to every cross-attention ↗"),
          ),
    );
    return element(
      "div",
      { class: "stack", "data-stack": stack.name },
      isT5 ? element("h3", {}, stack.name === "encoder" ? "Encoder" : "Decoder") : null,
      ...rows.reverse(),
    );
  });
  byId("stacks").replaceChildren(
    ...(isT5 ? [svgElement("svg", { id: "crossing", "aria-hidden": "true" })] : []),
    ...columns,
  );
  document.documentElement.style.setProperty("--network-width", isT5 ? "35rem" : "25rem");
  byId("network-hint").textContent =
    "The residual stream of the current token runs upwards. Click a head or a sublayer.";
  new ResizeObserver(drawCrossAttention).observe(byId("stacks"));
}

/** A sublayer: the stream, the branch through the sublayer, and a box with its heads. */
function buildPart(part) {
  const spine = svgElement("line", { class: "spine", x1: STREAM_X, x2: STREAM_X, y1: "0", y2: "100%" });
  const leaves = svgElement("path", { class: "branch", "stroke-width": 1.3 });
  const adds = svgElement("path", { class: "adds" });
  const plus = svgElement("circle", { class: "plus", cx: STREAM_X, r: 5 });
  const cross = svgElement("path", { stroke: "var(--stream)", "stroke-width": 1.2 });
  const picture = svgElement("svg", { "aria-hidden": "true" }, spine, leaves, adds, plus, cross);
  const name = button(
    { class: "name", click: () => selectHead(part, -1), "data-key": `part ${part.output}` },
    part.kind,
  );
  const heads = Array.from({ length: part.pattern ? model.heads : 0 }, (_, head) =>
    button(
      { class: "head", click: () => selectHead(part, head), "data-key": `head ${part.output} ${head}` },
      String(head),
    ),
  );
  const box = element(
    "div",
    { class: "box" },
    name,
    heads.length ? element("div", { class: "heads" }, ...heads) : null,
  );
  const row = element("div", { class: `part kind-${part.kind}`, "data-part": part.output }, picture, box);
  new ResizeObserver(([entry]) => {
    const height = entry.contentRect.height;
    const [top, bottom] = [9, height - 5];
    leaves.setAttribute(
      "d",
      `M ${STREAM_X} ${bottom} C 34 ${bottom}, 34 ${height * 0.66}, 50 ${height * 0.66}`,
    );
    adds.setAttribute("d", `M 50 ${height * 0.36} C 34 ${height * 0.36}, 34 ${top}, ${STREAM_X + 5} ${top}`);
    plus.setAttribute("cy", top);
    cross.setAttribute("d", `M ${STREAM_X - 3} ${top} h 6 M ${STREAM_X} ${top - 3} v 6`);
  }).observe(row);

  updaters.push(() => {
    const at = position(part);
    const [added, stream] = [
      normAt("output_norms", part.output, part, at),
      normAt("residual_norms", part.residual, part, at),
    ];
    spine.setAttribute("stroke-width", streamWidth(part, part.residual, at));
    adds.setAttribute("stroke-width", (1 + 8 * Math.min(1, added / (stream || 1))).toFixed(1));
    const selected = state.part === part.output;
    box.classList.toggle("selected", selected);
    name.setAttribute("aria-pressed", selected && (state.head < 0 || !part.pattern));
    name.setAttribute(
      "aria-label",
      `${title(part)}${part.pattern ? ", all heads" : ""}: ` +
        `output norm ${number(added)}, residual norm ${number(stream)}`,
    );
    name.title = `${part.output}: norm ${number(added)}; the residual stream after it: ${number(stream)}`;
    const norms = heads.map((_, head) => headNormAt(part, head, at));
    const largest = Math.max(...norms) || 1;
    const ablated = new Set(chosenInterventions());
    heads.forEach((node, head) => {
      node.style.setProperty("--weight", (norms[head] / largest).toFixed(2));
      node.setAttribute("aria-pressed", selected && state.head === head);
      node.classList.toggle("ablated", ablated.has(`${part.z}:${head}`));
      const description = `${title(part)}, head ${head}: norm ${number(norms[head])}`;
      if (node.title !== description) {
        node.title = description;
        node.setAttribute("aria-label", description);
      }
    });
  });
  return row;
}

/** The stroke width of the stream: its norm relative to the largest in the stack. */
function streamWidth(part, name, at) {
  const stack = stacks.find((each) => each.name === part.stack);
  const names = [stack.input, ...stack.blocks.flat().map((each) => each.residual)];
  const key = `${recording.id} ${state.run} ${part.stack} ${at}`;
  if (streamWidth.key !== key) {
    const norms = names.map((each) => normAt("residual_norms", each, part, at));
    Object.assign(streamWidth, { key, largest: Math.max(...norms) });
  }
  return (2.5 + 8 * (normAt("residual_norms", name, part, at) / (streamWidth.largest || 1))).toFixed(1);
}

/** The stream between two blocks; in the decoder with the logit lens. */
function buildStream(stack, name, part, number) {
  const spine = svgElement("line", { class: "spine", x1: STREAM_X, x2: STREAM_X, y1: "0", y2: "100%" });
  const picture = svgElement("svg", { "aria-hidden": "true" }, spine);
  const row = element("div", { class: "between" }, picture);
  if (number === null) {
    const input = button({
      class: "stream-label",
      click: () => setState({ part: part.output, tab: "computation", open: "input" }),
      "data-key": `input ${stack.name}`,
    });
    row.append(input);
    updaters.push(() =>
      replaceContent(
        input,
        "input",
        tokenSpan(stack.name === "encoder" ? sourceTokens()[state.src] : runTokens()[state.at]),
      ),
    );
  } else if (stack.name === "decoder") {
    const lens = button({
      class: "stream-label",
      click: () => setState({ tab: "lens", block: number }),
      "data-key": `lens ${number}`,
    });
    row.append(lens);
    updaters.push(() => {
      const [[id, probability]] = lensAt(number, state.at);
      lens.replaceChildren(
        `after block ${number}:`,
        tokenSpan(id, { style: { "--weight": probability.toFixed(2) } }),
        element("span", { class: "number" }, percent(probability)),
      );
      lens.setAttribute(
        "aria-label",
        `Logit lens after block ${number}: ${truncate(piece(id))}, ${percent(probability)}`,
      );
    });
  } else {
    row.append(element("span", { class: "stream-label" }, `after block ${number}`));
  }
  updaters.push(() => spine.setAttribute("stroke-width", streamWidth(part, name, position(part))));
  return row;
}

function buildNext() {
  const node = button({ class: "next", click: () => setState({ tab: "next" }), "data-key": "next" });
  updaters.push(() => {
    const { tokens, chosen } = nextTokens(state.at);
    node.replaceChildren(
      element("span", { class: "soft" }, "next token"),
      ...tokens
        .slice(0, 5)
        .map(([id, probability]) =>
          element(
            "span",
            { class: "row" },
            tokenSpan(id, id === chosen ? { style: { "font-weight": "700" } } : {}),
            bar(probability),
            element("span", { class: "number" }, percent(probability)),
          ),
        ),
    );
    node.setAttribute(
      "aria-label",
      `Next token: ${tokens
        .slice(0, 5)
        .map(([id, probability]) => `${truncate(piece(id), 30)} ${percent(probability)}`)
        .join(", ")}`,
    );
  });
  return node;
}

/** Lines from the encoder's output to every cross-attention. */
function drawCrossAttention() {
  const picture = byId("crossing");
  if (!picture) return;
  const frame = byId("stacks").getBoundingClientRect();
  const [encoder] = byId("stacks").querySelectorAll('[data-stack="encoder"]');
  const end = encoder.children[1].getBoundingClientRect(); // below the title
  const start = [end.left - frame.left + STREAM_X, end.top - frame.top + 4];
  const lane = encoder.getBoundingClientRect().right - frame.left + 12;
  const ends = [...byId("stacks").querySelectorAll(".part.kind-cross-attention")].map((row) => {
    const box = row.querySelector(".box").getBoundingClientRect();
    return [box.left - frame.left, box.top - frame.top + box.height / 2];
  });
  picture.replaceChildren(
    svgElement("path", {
      d: `M ${start[0]} ${end.bottom - frame.top} V ${start[1] + 6} q 0 -6 6 -6 H ${lane - 6}`,
    }),
    ...ends.map(([x, y]) => {
      const bend = y < start[1] ? -6 : 6; // up or down the lane, with rounded corners
      const turn = `Q ${lane} ${start[1]} ${lane} ${start[1] + bend}`;
      const into = `Q ${lane} ${y} ${lane + 6} ${y}`;
      return svgElement("path", { d: `M ${lane - 6} ${start[1]} ${turn} V ${y - bend} ${into} H ${x}` });
    }),
  );
}

function renderNetwork() {
  for (const draw of updaters) draw();
  if (!byId("stacks").contains(document.activeElement)) resetTabStop(byId("stacks"));
}

/** Show a sublayer in the attention panel: one head, or all with -1. */
function selectHead(part, head) {
  const tab = state.tab === "computation" ? "computation" : "attention";
  setState({ part: part.output, head, tab, open: "", key: null, neuron: null });
  if (matchMedia("(max-width: 62rem)").matches) byId("panels").scrollIntoView();
}
