/* The panel of attention: a head as a map and a table, all heads of a part, or how much a feed-forward adds. */

const maps = new Map(); // pictures of attention, one pixel a weight, by what they show
const MOST_MAPS = 60;

/** A picture of a head's weights, queries down and keys across; null while they are being unpacked. */
function picture(part, head) {
  const name = `${recording.id} ${state.run} ${part.pattern} ${head}`;
  if (maps.has(name)) return maps.get(name);
  const [height, width] = [queries(part).length, keys(part).length];
  const image = new ImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const colours = shades(part.kind);
  for (let query = 0; query < height; query++) {
    const row = levels(part, head, query);
    if (!row) return null;
    const count = Math.min(row.length, width);
    for (let key = 0; key < count; key++) pixels[query * width + key] = colours[row[key]];
    pixels.fill(colours[0], query * width + count, (query + 1) * width);
  }
  const canvas = element("canvas", { width, height });
  canvas.getContext("2d").putImageData(image, 0, 0);
  if (maps.size >= MOST_MAPS) maps.delete(maps.keys().next().value);
  maps.set(name, canvas);
  return canvas;
}

/** 256 colours from the background to a kind's hue, as little-endian RGBA. */
function shades(kind) {
  const read = (colour) => colour.match(/[0-9a-f]{2}/gi).map((two) => parseInt(two, 16));
  const [from, to] = [read(inks.sunk), read(kind === "cross-attention" ? inks.cross : inks.self)];
  return Uint32Array.from({ length: 256 }, (_, level) => {
    const [red, green, blue] = from.map((start, channel) =>
      Math.round(start + ((to[channel] - start) * level) / 255),
    );
    return (255 << 24) | (blue << 16) | (green << 8) | red;
  });
}

panels.attention = {
  key: () => `${state.see} ${state.head < 0} ${state.run}`,
  build(root) {
    const part = parts[state.see];
    root.className = `kind-${part.kind}`;
    if (!part.pattern) buildSizes(root, part);
    else if (state.head < 0) buildAllHeads(root, part);
    else buildHead(root, part);
  },
  update() {
    this.draw();
  },
  draw() {},
};

/** A feed-forward layer has no attention: how much it adds, at every token. */
function buildSizes(root, part) {
  const table = element("tbody");
  fill(
    root,
    element("h3", {}, title(part)),
    element(
      "p",
      { class: "soft" },
      "It looks at one token at a time, so there is no attention to see. ",
      "What it adds to the residual stream is a vector; ",
      "this is its size (Euclidean norm), and the stream’s behind it.",
    ),
    element(
      "div",
      { class: "scroller" },
      element(
        "table",
        { class: `bars kind-${part.kind}` },
        element("caption", {}, element("code", {}, part.writes)),
        tableHead("position", "token", "adds", "", "stream"),
        table,
      ),
    ),
    recordInPython(part.writes, ".norm(dim=-1)  # (B, T)"),
  );
  panels.attention.draw = () => {
    const sizes = queries(part).map((_, at) => size("written", part.writes, part, at));
    const most = Math.max(...sizes) || 1;
    const around = windowOf(queries(part).length, position(part), 40);
    refill(
      table,
      ...around.map((at) =>
        element(
          "tr",
          { class: at === position(part) ? "chosen" : "" },
          figure(String(at), "rank"),
          element("td", {}, token(queries(part)[at])),
          element("td", { class: "share" }, bar(sizes[at] / most)),
          figure(number(sizes[at])),
          figure(number(size("stream", part.after, part, at))),
        ),
      ),
    );
  };
}

/** All heads of one attention, small. */
function buildAllHeads(root, part) {
  const canvases = [];
  fill(
    root,
    element("h3", {}, `${title(part)}: all heads`),
    element("p", { class: "soft" }, mapHint(part)),
    element(
      "div",
      { class: "small-maps" },
      ...Array.from({ length: model.heads }, (_, head) => {
        const canvas = element("canvas", { "aria-hidden": "true" });
        canvases.push(canvas);
        return button(
          { click: () => look({ head }), "data-key": `map ${head}`, "aria-label": `Head ${head}, larger` },
          `head ${head}`,
          canvas,
        );
      }),
    ),
  );
  roving(root.querySelector(".small-maps"));
  tabStop(root.querySelector(".small-maps"));
  panels.attention.draw = () =>
    canvases.forEach((canvas, head) => {
      const image = picture(part, head);
      if (!image || canvas.image === image) return;
      // Short texts are enlarged, so that a weight is a square.
      const scale = Math.max(1, Math.floor(240 / Math.max(image.width, image.height)));
      Object.assign(canvas, { width: image.width * scale, height: image.height * scale, image });
      const context = canvas.getContext("2d");
      context.imageSmoothingEnabled = false;
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
    });
}

const mapHint = (part) =>
  "Each row is a token that looks, each column a token " +
  `${part.kind === "cross-attention" ? "of the encoder " : ""}that is looked at. ` +
  "The colour goes with the square root of the weight, so that small ones can be seen.";

const MOST_LABELS = 70; // keys that may have their token written above, where the map is as wide as the panel
const LABELS = { left: 96, top: 88, from: 10 }; // room for tokens beside a map of cells of so many pixels

/** One head: its weights as a map, and where the current token looks as a table. */
function buildHead(root, part) {
  const heading = element("h3");
  const readout = element("p", { class: "soft", "aria-live": "polite" });
  const [rows, columns] = [queries(part), keys(part)];
  const canvas = element("canvas", { role: "img", tabindex: 0 });
  const cursor = element("canvas", {
    "aria-hidden": "true",
    style: { position: "absolute", inset: "0", "pointer-events": "none" },
  });
  const scroller = element(
    "div",
    { class: "scroller" },
    element("div", { style: { position: "relative", width: "max-content" } }, canvas, cursor),
  );
  const table = element("tbody");
  const caption = element("caption");
  const code = element("div");
  fill(
    root,
    element(
      "div",
      { class: "head-line" },
      button(
        {
          click: () => look({ head: (state.head + model.heads - 1) % model.heads }),
          "aria-label": "Previous head",
          "data-key": "previous",
        },
        "‹",
      ),
      heading,
      button(
        {
          click: () => look({ head: (state.head + 1) % model.heads }),
          "aria-label": "Next head",
          "data-key": "following",
        },
        "›",
      ),
      button({ click: () => look({ head: -1 }) }, "All heads"),
      button({ click: () => look({ tab: "change", changes: `${part.z}:${state.head}` }) }, "Knock it out"),
    ),
    element("p", { class: "soft" }, mapHint(part)),
    element(
      "div",
      { class: "attention" },
      element(
        "div",
        { class: columns.length > 24 && columns.length <= MOST_LABELS ? "map wide" : "map" },
        scroller,
        readout,
      ),
      element(
        "div",
        { class: "looks" },
        element("table", { class: "bars" }, caption, tableHead("position", "token", "weight", ""), table),
      ),
    ),
    code,
  );
  let pointed = null; // the weight under the pointer or the arrows: [query, key]
  let room = 0; // the pixels across that there are for the map
  let cell = 1; // those of a weight
  let left = 0;
  let top = 0;
  const pick = (event) => {
    const box = canvas.getBoundingClientRect();
    const [key, query] = [
      Math.floor((event.clientX - box.left - left) / cell),
      Math.floor((event.clientY - box.top - top) / cell),
    ];
    return query >= 0 && key >= 0 && query < rows.length && key < columns.length ? [query, key] : null;
  };
  const point = (where) => {
    pointed = where;
    drawCursor();
  };
  canvas.addEventListener("pointermove", (event) => point(pick(event)));
  canvas.addEventListener("pointerleave", () => point(null));
  canvas.addEventListener("click", (event) => {
    const where = pick(event);
    if (where) look(readsSource(part) ? { src: where[0] } : { at: where[0] });
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [query, key] = pointed ?? [position(part), 0];
    const clamp = (value, most) => Math.max(0, Math.min(value, most - 1));
    point([clamp(query + step[0], rows.length), clamp(key + step[1], columns.length)]);
    if (step[0]) look(readsSource(part) ? { src: pointed[0] } : { at: pointed[0] });
  });

  function drawMap() {
    const image = room > 0 ? picture(part, state.head) : null;
    if (!image || (canvas.image === image && canvas.room === room)) return;
    Object.assign(canvas, { image, room });
    const labelled = Math.min(24, Math.floor((room - LABELS.left) / columns.length));
    const labels = labelled >= LABELS.from;
    [left, top] = labels ? [LABELS.left, LABELS.top] : [0, 0];
    cell = labels ? labelled : Math.min(4000 / columns.length, Math.max(room / columns.length, 1.5), 24);
    const [width, height] = [left + cell * columns.length, top + cell * rows.length];
    const ratio = Math.min(devicePixelRatio, 8000 / Math.max(width, height));
    for (const one of [canvas, cursor]) {
      Object.assign(one, { width: Math.round(width * ratio), height: Math.round(height * ratio) });
      Object.assign(one.style, { width: `${width}px`, height: `${height}px` });
      one.getContext("2d").scale(ratio, ratio);
    }
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image, left, top, cell * columns.length, cell * rows.length);
    if (labels) drawLabels(context, rows, columns, cell);
    canvas.setAttribute(
      "aria-label",
      `Attention of ${title(part)}, head ${state.head}: ${rows.length} by ${columns.length} weights. ` +
        "Arrows move over them; the table beside it holds the largest of the current token.",
    );
  }

  function drawCursor() {
    const context = cursor.getContext("2d");
    context.clearRect(0, 0, cursor.width, cursor.height);
    context.strokeStyle = inks.text;
    context.lineWidth = 1.5;
    context.strokeRect(left, top + position(part) * cell, cell * columns.length, Math.max(cell, 2));
    if (!pointed) {
      readout.textContent =
        "Point at the map, or move over it with the arrows. A click makes its row the current token.";
      return;
    }
    const [query, key] = pointed;
    context.strokeRect(left + key * cell - 1, top + query * cell - 1, cell + 2, cell + 2);
    const row = levels(part, state.head, query);
    const value = row && key < row.length ? weight(row[key]) : 0;
    const [from, to] = [`${quoted(rows[query])} (${query})`, `${quoted(columns[key])} (${key})`];
    readout.textContent = `from ${from} to ${to}: ${number(value)}`;
  }

  panels.attention.draw = () => {
    heading.textContent = `${title(part)}, head ${state.head}`;
    drawMap();
    drawCursor();
    const query = shownQuery(part);
    const row = levels(part, state.head, query);
    if (!row) return;
    caption.textContent = `Where ${quoted(rows[query])} (${query}) looks`;
    const strongest = [...row.keys()]
      .slice(0, columns.length)
      .filter((key) => row[key] > 0)
      .sort((a, b) => row[b] - row[a])
      .slice(0, 10);
    refill(
      table,
      ...strongest.map((key) =>
        element(
          "tr",
          {},
          figure(String(key), "rank"),
          element("td", {}, token(columns[key])),
          figure(number(weight(row[key]))),
          element("td", { class: "share" }, bar(weight(row[key]))),
        ),
      ),
    );
    if (code.dataset.head !== String(state.head)) {
      code.dataset.head = state.head;
      refill(code, recordInPython(part.pattern, `[0, ${state.head}]  # (T, S)`));
    }
  };
  new ResizeObserver(([entry]) => {
    room = entry.contentRect.width;
    show();
  }).observe(scroller);
}

function drawLabels(context, rows, columns, cell) {
  context.fillStyle = inks.soft;
  context.font = `${Math.min(12, cell)}px ui-monospace, monospace`;
  context.textBaseline = "middle";
  rows.forEach((id, query) => {
    context.textAlign = "right";
    context.fillText(marked(id, 13), LABELS.left - 5, LABELS.top + (query + 0.5) * cell, LABELS.left - 8);
  });
  columns.forEach((id, key) => {
    context.save();
    context.translate(LABELS.left + (key + 0.5) * cell, LABELS.top - 5);
    context.rotate(-Math.PI / 2.6);
    context.textAlign = "left";
    context.fillText(marked(id, 12), 0, 0, LABELS.top);
    context.restore();
  });
}

/** Positions around one, at most so many. */
function windowOf(length, middle, most) {
  const first = Math.max(0, Math.min(middle - (most >> 1), length - most));
  return Array.from({ length: Math.min(most, length) }, (_, step) => first + step);
}
