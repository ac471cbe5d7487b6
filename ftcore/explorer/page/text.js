/* The text: tokens colored by attention, and stepping through generation. */

const shownTokens = { source: [], target: [] }; // buttons by position

function buildText() {
  replaceContent(
    byId("runs"),
    byId("runs").querySelector("legend"),
    ...recording.runs.map((each, number) =>
      element(
        "label",
        {},
        element("input", {
          type: "radio",
          name: "run",
          value: number,
          change: () => setState({ run: number, at: clampToRun(number) }),
        }),
        ` ${each.name}`,
      ),
    ),
    ...help("runs"),
  );
  buildTokens();
}

/** The current position, limited to another run's length. */
const clampToRun = (number) => Math.min(state.at, recording.runs[number].ids.length - 2);

function buildTokens() {
  const lines = [];
  if (isT5) lines.push(buildLine("source", "Encoder input", sourceTokens()));
  lines.push(buildLine("target", isT5 ? "Decoder input and output" : "Input and output", runTokens()));
  byId("tokens").replaceChildren(...lines);
  buildTokens.of = `${state.run}`;
}

function buildLine(side, name, ids) {
  const root = element(
    "div",
    { class: "stream-of-tokens", role: "group", "aria-label": name },
    element("b", {}, name),
  );
  shownTokens[side] = ids.map((id, at) => {
    const text = piece(id);
    const last = side === "target" && at === ids.length - 1;
    const node = button(
      {
        dir: "auto",
        title: `${at}: ${truncate(text, 300)}`,
        "aria-label": `${at}: ${truncate(text, 80)}${last ? ", last output" : ""}`,
        "data-at": at,
        disabled: last, // not a decoder input
      },
      truncate(text).trimStart() || "␣",
    );
    const written = side === "target" && at >= promptLength();
    node.base = `token${text.startsWith(" ") ? " spaced" : ""}${written ? " written" : ""}`;
    root.append(node);
    if (text.endsWith("⏎")) root.append(element("br"));
    return node;
  });
  const find = (event) => event.target.closest?.("button[data-at]");
  root.addEventListener("click", (event) => {
    const node = find(event);
    if (!node) return;
    stopPlaying();
    setState(side === "source" ? { src: Number(node.dataset.at) } : { at: Number(node.dataset.at) });
  });
  const point = (event) => {
    const node = find(event);
    setHover(node ? side : null, node ? Number(node.dataset.at) : null);
  };
  root.addEventListener("pointerover", point);
  root.addEventListener("pointerleave", () => setHover(null, null));
  root.addEventListener("focusin", point);
  root.addEventListener("focusout", () => setHover(null, null));
  rovingTabIndex(root);
  return root;
}

function setHover(side, at) {
  if (hover.side === side && hover.at === at) return;
  Object.assign(hover, { side, at });
  setHover.waiting ??= requestAnimationFrame(() => {
    setHover.waiting = null;
    renderText(); // the network shows the current position, not the pointer's
    if (state.tab === "attention") panels.attention.draw();
  });
}

/** The query whose attention is shown: the token under the pointer, else the current position. */
function shownQuery(part) {
  const side = inEncoder(part) ? "source" : "target";
  const last = queries(part).length - 1;
  return hover.side === side ? Math.min(hover.at, last) : position(part);
}

function renderText() {
  if (buildTokens.of !== `${state.run}`) buildTokens();
  const part = parts[state.part];
  const shading = tokenWeights(part);
  const querySide = inEncoder(part) ? "source" : "target";
  for (const side of ["source", "target"]) {
    const current = side === "source" ? state.src : state.at;
    const root = shownTokens[side][0]?.parentElement;
    if (!root) continue;
    // Before any style changes, since reading positions afterwards would force a layout.
    if (root.current !== current) scrollWithin(root, shownTokens[side][(root.current = current)]);
    const shown = shading.side === side ? shading : null;
    const hue = shown ? ` kind-${part.kind}` : "";
    shownTokens[side].forEach((node, at) => {
      const level = shown && at < shown.weights.length ? (shown.weights[at] / 255).toFixed(3) : "0";
      if (node.level !== level) node.style.setProperty("--weight", (node.level = level));
      const later = side === "target" && at > state.at;
      const isQuery = side === querySide && at === current;
      const kind = `${node.base}${hue}${later ? " later" : ""}${isQuery ? " query" : ""}`;
      if (node.kind !== kind) node.className = node.kind = kind;
      if (node.current !== (at === current))
        node.setAttribute("aria-current", (node.current = at === current));
    });
    if (!root.contains(document.activeElement)) resetTabStop(root);
  }
  byId("reading").textContent = shading.reading;
  for (const input of byId("runs").querySelectorAll("input"))
    input.checked = Number(input.value) === state.run;
  const slider = byId("position");
  slider.max = positions() - 1;
  slider.value = state.at;
  const [read, written] = runTokens().slice(state.at, state.at + 2).map(quote);
  const prompted = state.at + 1 < promptLength();
  slider.setAttribute("aria-valuetext", `${state.at}, input ${read}`);
  byId("position-text").textContent =
    `${state.at} of ${positions() - 1}: input ${read}, ` +
    `${prompted ? "next" : "output"} ${written}`;
  byId("back").disabled = state.at === 0;
  byId("forward").disabled = state.at === positions() - 1;
}

/** Scroll an item into view inside its box, without scrolling the page. */
function scrollWithin(box, item) {
  const [outer, inner] = [box.getBoundingClientRect(), item.getBoundingClientRect()];
  if (inner.top < outer.top) box.scrollTop += inner.top - outer.top;
  if (inner.bottom > outer.bottom) box.scrollTop += inner.bottom - outer.bottom;
}

/** The color intensity of each token (0 to 255), the side it applies to, and a description. */
function tokenWeights(part) {
  if (!part.pattern) {
    const side = inEncoder(part) ? "source" : "target";
    const norms = queries(part).map((_, at) => normAt("output_norms", part.output, part, at));
    const largest = Math.max(...norms) || 1;
    const at = shownQuery(part);
    return {
      side,
      weights: norms.map((norm) => (255 * norm) / largest),
      reading:
        `${title(part)} adds a vector of norm ${number(norms[at])} at ${quote(queries(part)[at])}. ` +
        "Color: its norm at each token.",
    };
  }
  const query = shownQuery(part);
  const all = state.head < 0 ? Array.from({ length: model.heads }, (_, head) => head) : [state.head];
  const rows = all.map((head) => attentionLevels(part, head, query));
  const side = keysAreSource(part) ? "source" : "target";
  if (rows.includes(null)) return { side, weights: [], reading: "" };
  const count = keysAreSource(part) ? source().length : query + 1;
  const weights = new Float32Array(count);
  for (const row of rows)
    for (let key = 0; key < count; key++) weights[key] += fromLevel(row[key]) / rows.length;
  const seen = [...weights.keys()].filter((key) => weights[key] > 0);
  const strongest = seen.sort((a, b) => weights[b] - weights[a]).slice(0, 4);
  const pointed =
    hover.side === side && side !== (inEncoder(part) ? "source" : "target") ? [hover.at] : strongest;
  const name = state.head < 0 ? "mean of all heads" : `head ${state.head}`;
  const list = pointed.map((key) => `${quote(keys(part)[key])} ${number(weights[key])}`).join(", ");
  return {
    side,
    weights: weights.map((value) => 255 * Math.sqrt(value)),
    reading: `${title(part)}, ${name}: from ${quote(queries(part)[query])} (${query}) to ${list}`,
  };
}

let playing = null;

function stopPlaying() {
  clearInterval(playing);
  playing = null;
  byId("play").textContent = "▶▶";
  byId("play").setAttribute("aria-label", "Play");
}

function play() {
  if (playing) return stopPlaying();
  setState({ at: state.at === positions() - 1 ? promptLength() - 1 : state.at });
  byId("play").textContent = "■";
  byId("play").setAttribute("aria-label", "Stop");
  playing = setInterval(
    () => (state.at < positions() - 1 ? setState({ at: state.at + 1 }) : stopPlaying()),
    700,
  );
}
