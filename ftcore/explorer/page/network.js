/* The network: the residual stream, and the parts that branch off it. */

const drawnParts = []; // what changes in the network's picture: functions of nothing
const SPINE = 18; // where the residual stream runs, from the left of its column

function buildNetwork() {
  drawnParts.length = 0;
  const columns = stacks.map((stack) => {
    const isDecoder = stack.name === "decoder";
    const rows = [];
    stack.blocks.forEach((block, number) => {
      block.forEach((part) => rows.push(buildPart(parts[part.writes])));
      rows.push(buildBetween(stack, block.at(-1).after, parts[block.at(-1).writes], number));
    });
    rows.unshift(buildBetween(stack, stack.before, parts[stack.blocks[0][0].writes], null));
    rows.push(
      isDecoder
        ? buildNext()
        : element(
            "div",
            { class: "between" },
            drawn("svg"),
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
    ...(isT5 ? [drawn("svg", { id: "crossing", "aria-hidden": "true" })] : []),
    ...columns,
  );
  document.documentElement.style.setProperty("--network-width", isT5 ? "35rem" : "25rem");
  byId("network-hint").textContent =
    "The residual stream runs upwards. Each part reads it and adds to it: the wider its curve, the more " +
    "it adds at the current token. Click a head or a part.";
  new ResizeObserver(drawCrossing).observe(byId("stacks"));
}

/** A part: the stream, the branch that leaves it and comes back, and a box with its heads. */
function buildPart(part) {
  const spine = drawn("line", { class: "spine", x1: SPINE, x2: SPINE, y1: "0", y2: "100%" });
  const leaves = drawn("path", { class: "branch", "stroke-width": 1.3 });
  const adds = drawn("path", { class: "adds" });
  const plus = drawn("circle", { class: "plus", cx: SPINE, r: 5 });
  const cross = drawn("path", { stroke: "var(--stream)", "stroke-width": 1.2 });
  const picture = drawn("svg", { "aria-hidden": "true" }, spine, leaves, adds, plus, cross);
  const name = button(
    { class: "name", click: () => see(part, -1), "data-key": `part ${part.writes}` },
    part.kind,
  );
  const heads = Array.from({ length: part.pattern ? model.heads : 0 }, (_, head) =>
    button(
      { class: "head", click: () => see(part, head), "data-key": `head ${part.writes} ${head}` },
      String(head),
    ),
  );
  const box = element(
    "div",
    { class: "box" },
    name,
    heads.length ? element("div", { class: "heads" }, ...heads) : null,
  );
  const row = element("div", { class: `part kind-${part.kind}`, "data-part": part.writes }, picture, box);
  new ResizeObserver(([entry]) => {
    const height = entry.contentRect.height;
    const [top, bottom] = [9, height - 5];
    leaves.setAttribute("d", `M ${SPINE} ${bottom} C 34 ${bottom}, 34 ${height * 0.66}, 50 ${height * 0.66}`);
    adds.setAttribute("d", `M 50 ${height * 0.36} C 34 ${height * 0.36}, 34 ${top}, ${SPINE + 5} ${top}`);
    plus.setAttribute("cy", top);
    cross.setAttribute("d", `M ${SPINE - 3} ${top} h 6 M ${SPINE} ${top - 3} v 6`);
  }).observe(row);

  drawnParts.push(() => {
    const at = position(part);
    const [written, stream] = [size("written", part.writes, part, at), size("stream", part.after, part, at)];
    spine.setAttribute("stroke-width", streamWidth(part, part.after, at));
    adds.setAttribute("stroke-width", (1 + 8 * Math.min(1, written / (stream || 1))).toFixed(1));
    const seen = state.see === part.writes;
    box.classList.toggle("seen", seen);
    name.setAttribute("aria-pressed", seen && (state.head < 0 || !part.pattern));
    name.setAttribute(
      "aria-label",
      `${title(part)}${part.pattern ? ", all heads" : ""}: ` +
        `adds ${number(written)} to a stream of ${number(stream)}`,
    );
    name.title = `${part.writes}: adds ${number(written)}; the stream behind it has ${number(stream)}`;
    const sizes = heads.map((_, head) => headSize(part, head, at));
    const most = Math.max(...sizes) || 1;
    const out = knockedOut();
    heads.forEach((made, head) => {
      made.style.setProperty("--weight", (sizes[head] / most).toFixed(2));
      made.setAttribute("aria-pressed", seen && state.head === head);
      made.classList.toggle("out", out.has(`${part.z}:${head}`));
      const says = `${title(part)}, head ${head}: adds ${number(sizes[head])}`;
      if (made.title !== says) {
        made.title = says;
        made.setAttribute("aria-label", says);
      }
    });
  });
  return row;
}

/** How wide the stream is drawn: its size, compared with the largest of its column. */
function streamWidth(part, name, at) {
  const stack = stacks.find((one) => one.name === part.stack);
  const names = [stack.before, ...stack.blocks.flat().map((one) => one.after)];
  const key = `${recording.id} ${state.run} ${part.stack} ${at}`;
  if (streamWidth.key !== key) {
    Object.assign(streamWidth, { key, most: Math.max(...names.map((one) => size("stream", one, part, at))) });
  }
  return (2.5 + 8 * (size("stream", name, part, at) / (streamWidth.most || 1))).toFixed(1);
}

/** The stream between two blocks; in the decoder with what the model would say there. */
function buildBetween(stack, name, part, number) {
  const spine = drawn("line", { class: "spine", x1: SPINE, x2: SPINE, y1: "0", y2: "100%" });
  const picture = drawn("svg", { "aria-hidden": "true" }, spine);
  const row = element("div", { class: "between" }, picture);
  if (number === null) {
    const reads = element("span", { class: "says" });
    row.append(reads);
    drawnParts.push(() =>
      refill(reads, "reads", token(stack.name === "encoder" ? source()[state.src] : run().ids[state.at])),
    );
  } else if (stack.name === "decoder") {
    const says = button({
      class: "says",
      click: () => look({ tab: "lens", block: number }),
      "data-key": `lens ${number}`,
    });
    row.append(says);
    drawnParts.push(() => {
      const [[id, probability]] = lensOf(number, state.at);
      says.replaceChildren(
        `after block ${number}:`,
        token(id, { style: { "--weight": probability.toFixed(2) } }),
        element("span", { class: "number" }, percent(probability)),
      );
      says.setAttribute(
        "aria-label",
        `Logit lens after block ${number}: ${short(piece(id))}, ${percent(probability)}`,
      );
    });
  } else {
    row.append(element("span", { class: "says" }, `after block ${number}`));
  }
  drawnParts.push(() => spine.setAttribute("stroke-width", streamWidth(part, name, position(part))));
  return row;
}

function buildNext() {
  const made = button({ class: "next", click: () => look({ tab: "next" }), "data-key": "next" });
  drawnParts.push(() => {
    const { tokens, chosen } = nextTokens(state.at);
    made.replaceChildren(
      element("span", { class: "soft" }, "what comes next"),
      ...tokens
        .slice(0, 5)
        .map(([id, probability]) =>
          element(
            "span",
            { class: "row" },
            token(id, id === chosen ? { style: { "font-weight": "700" } } : {}),
            bar(probability),
            element("span", { class: "number" }, percent(probability)),
          ),
        ),
    );
    made.setAttribute(
      "aria-label",
      `What comes next: ${tokens
        .slice(0, 5)
        .map(([id, one]) => `${short(piece(id), 30)} ${percent(one)}`)
        .join(", ")}`,
    );
  });
  return made;
}

/** The lines from the encoder's end to every cross-attention. */
function drawCrossing() {
  const picture = byId("crossing");
  if (!picture) return;
  const frame = byId("stacks").getBoundingClientRect();
  const [encoder] = byId("stacks").querySelectorAll('[data-stack="encoder"]');
  const end = encoder.children[1].getBoundingClientRect(); // below the title
  const start = [end.left - frame.left + SPINE, end.top - frame.top + 4];
  const lane = encoder.getBoundingClientRect().right - frame.left + 12;
  const ends = [...byId("stacks").querySelectorAll(".part.kind-cross-attention")].map((row) => {
    const box = row.querySelector(".box").getBoundingClientRect();
    return [box.left - frame.left, box.top - frame.top + box.height / 2];
  });
  picture.replaceChildren(
    drawn("path", {
      d: `M ${start[0]} ${end.bottom - frame.top} V ${start[1] + 6} q 0 -6 6 -6 H ${lane - 6}`,
    }),
    ...ends.map(([x, y]) => {
      const bend = y < start[1] ? -6 : 6; // up or down the lane, with round corners
      const turn = `Q ${lane} ${start[1]} ${lane} ${start[1] + bend}`;
      const into = `Q ${lane} ${y} ${lane + 6} ${y}`;
      return drawn("path", { d: `M ${lane - 6} ${start[1]} ${turn} V ${y - bend} ${into} H ${x}` });
    }),
  );
}

function showNetwork() {
  for (const draw of drawnParts) draw();
  if (!byId("stacks").contains(document.activeElement)) tabStop(byId("stacks"));
}

/** Look into a part; with its heads, or one of them, in the panel for attention. */
function see(part, head) {
  look({ see: part.writes, head, tab: "attention" });
  if (matchMedia("(max-width: 62rem)").matches) byId("panels").scrollIntoView();
}
