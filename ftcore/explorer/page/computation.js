/* The computation panel: one attention weight from its query and key to what the head writes.

   Numbers are computed from the recorded vectors as the model does; the other sublayers are in sublayers.js. */

/** What can be opened, in the order of the computation; "" is the sublayer itself. */
const OPENABLE = { "": "", input: "Embedding", norm: "Norm", final: "Final norm" };

/** Show the computation of an attention weight. */
function openCell(part, query, key) {
  setState({ ...(inEncoder(part) ? { src: query } : { at: query }), key, tab: "computation", open: "" });
}

/** The recorded vectors of the encoder, or of a run; null while they are being unpacked or requested. */
function computations(part) {
  const all = recording.computations;
  if (!live && !all.unpacked) {
    all.waiting ??= renderAfter(unpackAll(all).then(() => (all.unpacked = true)));
    return null;
  }
  const own = inEncoder(part) ? all.encoder : all.runs[state.run];
  if (live && !own.parts[part.output]) {
    own.waiting ??= {};
    own.waiting[part.output] ??= renderAfter(requestComputation(own, part));
    return null;
  }
  return own;
}

async function requestComputation(own, part) {
  const found = await post("computation", { ...answerRequest(), ids: run().ids, part: part.output });
  if (found) Object.assign(own, found, { parts: { ...own.parts, ...found.parts } });
}

/** The recording that has a position, and the index there: runs share what comes before they differ. */
function computationAt(part, at) {
  const own = computations(part);
  return at >= own.start ? [own, at - own.start] : [recording.computations.runs[0], at];
}

/** A vector of a sublayer at a position; `head` for one head's. */
function vectorAt(part, name, at, head = null) {
  const [where, index] = computationAt(part, at);
  const array = where.parts[part.output][name];
  return head === null ? rowOf(array, index) : rowOf(array, head, index);
}

/** k or v of one key. Cross-attention's are those of the source, recorded with the first run. */
function keyVector(part, name, head, key) {
  if (part.kind !== "cross-attention") return vectorAt(part, name, key, head);
  const own = computations(part).parts[part.output];
  return rowOf(own[name] ?? recording.computations.runs[0].parts[part.output][name], head, key);
}

/** Everything between q and the output of a head for one query. */
function attentionRow(part, head, query) {
  const { scale, bias } = computations(part).parts[part.output];
  const q = vectorAt(part, "q", query, head);
  const isMasked = (key) => !keysAreSource(part) && key > query;
  const bucketOf = (key) => bias.buckets.values[key - query + (bias.buckets.values.length >> 1)];
  const biasOf = (key) => (bias ? rowOf(bias.table, bucketOf(key))[head] : 0);
  const products = keys(part).map((_, key) => dot(q, keyVector(part, "k", head, key)));
  const scores = products.map((product, key) => (isMasked(key) ? -Infinity : product * scale + biasOf(key)));
  const highest = Math.max(...scores);
  const exponentials = scores.map((score) => Math.exp(score - highest));
  const sum = exponentials.reduce((total, each) => total + each, 0);
  const weights = exponentials.map((each) => each / sum);
  return {
    q,
    scale,
    bias,
    isMasked,
    bucketOf,
    biasOf,
    products,
    scores,
    highest,
    exponentials,
    sum,
    weights,
  };
}

panels.computation = {
  key: () => "",
  build(root) {
    this.root = root;
    this.shown = null;
    recording.computations ??= live
      ? { encoder: { parts: {} }, runs: recording.runs.map(() => ({ parts: {} })) }
      : null;
  },
  update() {
    const shown = ["run", "part", "head", "open", "at", "src", "key", "neuron"]
      .map((name) => state[name])
      .join();
    if (this.shown === shown) return;
    const part = parts[state.part];
    this.root.className = `kind-${part.kind}`;
    if (!recording.computations) {
      replaceContent(this.root, element("h3", {}, "Computation"), sentence(TOO_LARGE));
    } else if (!computations(part)) {
      replaceContent(this.root, sentence("Loading …"));
    } else {
      this.shown = shown;
      const opened = { input: buildInput, norm: buildNorm, final: buildNorm }[state.open];
      const build = opened ?? (part.pattern ? buildWeight : buildNeurons);
      replaceContent(this.root, ...openers(part), ...build(part));
      rovingTabIndex(this.root.querySelector(".openers"));
      resetTabStop(this.root.querySelector(".openers"));
    }
  },
};

const WITHOUT_WRITTEN =
  "The numbers that are written are left out of this page, which would be too large with them.";
const TOO_LARGE =
  "With the vectors of every head, this page would be too large. " +
  "python -m ftcore.explore --serve computes them on request.";

/** The heading, and buttons for the steps of this sublayer. */
function openers(part) {
  const names = { ...OPENABLE, "": part.pattern ? "Attention" : "Neurons" };
  const order = ["input", "norm", "", "final"];
  return [
    headLine(
      { "": part.pattern ? "computation" : "neurons", input: "embedding", norm: "norm", final: "norm" }[state.open],
      element("h3", {}, `${title(part)}${part.pattern && state.open === "" ? `, head ${shownHead()}` : ""}`),
    ),
    element(
      "div",
      { class: "openers", role: "group", "aria-label": "What is computed" },
      ...order.map((open) =>
        button(
          {
            click: () => setState({ open }),
            "aria-pressed": String(open === state.open),
            "data-key": `open ${open}`,
          },
          names[open],
        ),
      ),
    ),
  ];
}

const shownHead = () => Math.max(0, state.head);

/** A step, numbered or alone: text and numbers, beside the lines of code. */
function stepOf(part, name, sources, ...children) {
  const [number, text] = name.match(/^(?:(\d+)\. )?(.*)/).slice(1);
  return element(
    "section",
    { class: "step", "data-step": sources[0] ?? "table" },
    element("h4", {}, number ? element("i", {}, number) : null, text),
    element("div", { class: "numbers" }, ...children.filter((child) => child !== null)),
    element("div", { class: "sources" }, ...sources.map((source) => sourcePassages(part, source))),
  );
}

const others = (list) => `${list.length} other${list.length > 1 ? "s" : ""}`;

/** Rows "name, number" of a sum, with the total below a line. */
const sumTable = (rows, total) =>
  element(
    "table",
    { class: "sum" },
    element(
      "tbody",
      {},
      ...rows.map(([name, ...cells]) =>
        element("tr", {}, element("td", {}, ...name), element("td", { class: "number" }, ...cells)),
      ),
    ),
    element(
      "tfoot",
      {},
      element("tr", {}, element("td", {}, ...total[0]), element("td", { class: "number" }, total[1])),
    ),
  );

/** One attention weight. */
function buildWeight(part) {
  const [head, query] = [shownHead(), position(part)];
  const row = attentionRow(part, head, query);
  const strongest = [...row.weights.keys()].sort((a, b) => row.weights[b] - row.weights[a]);
  const key = Math.min(state.key ?? strongest[0], keys(part).length - 1);
  const k = keyVector(part, "k", head, key);
  const at = (side, id, index) => [
    element("b", {}, side),
    " ",
    tokenSpan(id),
    element("small", {}, ` ${index}`),
  ];
  const [from, to] = [at("q", queries(part)[query], query), at("k", keys(part)[key], key)];
  const products = combine(row.q, k, (a, b) => a * b);
  const keyButton = (step, label, text) =>
    button(
      {
        click: () => setState({ key: key + step }),
        disabled: !(key + step in keys(part)),
        "aria-label": label,
        "data-key": label,
      },
      text,
    );
  return [
    lede(
      "From ",
      tokenSpan(queries(part)[query]),
      ` (${query}) to `,
      keyButton(-1, "Previous key", "‹"),
      tokenSpan(keys(part)[key]),
      ` (${key}) `,
      keyButton(1, "Next key", "›"),
      element("span", { class: "found" }, "weight ", value("weight", row.weights[key])),
    ),
    stepOf(
      part,
      "1. Query and key",
      ["qkv"],
      sentence(
        `Matrices turn the normed stream at the query’s token into q, and ${part.kind === "cross-attention" ? "the encoder’s output" : "the normed stream"} at the key’s token into k and v: ${row.q.length} numbers each.`,
      ),
      vectorRow(from, row.q, { key: "q" }),
      vectorRow(to, k, { key: "k" }),
    ),
    stepOf(
      part,
      "2. Their product",
      ["product"],
      vectorRow([element("b", {}, "q × k")], products, {
        note: `sum ${decimal(row.products[key])}`,
        key: "products",
      }),
      ...dotProduct("product", ["q", row.q], ["k", k]),
    ),
    buildScore(part, head, row, query, key),
    buildSoftmax(part, row, strongest, key),
    buildMix(part, head, row, strongest, key),
    buildWrite(part, head, query),
  ];
}

/** Scale or position bias, and mask. */
function buildScore(part, head, row, query, key) {
  const width = row.q.length;
  const scaled = row.products[key] * row.scale;
  const isUsual = Math.abs(row.scale - width ** -0.5) < 1e-6;
  const rows = [[["q · k"], value("product-again", row.products[key])]];
  if (isT5) rows.push([["no scale", element("small", {}, " 1/√K is in T5’s initial weights of q")], "× 1"]);
  else
    rows.push([
      [
        isUsual ? `÷ √K = √${width}` : `× ${decimal(row.scale)}`,
        element("small", {}, isUsual ? ` = ${decimal(1 / row.scale)}` : ""),
      ],
      value("scaled", scaled),
    ]);
  if (row.bias) {
    const note = ` key − query = ${decimal(key - query).replace(".000", "")}: bucket ${row.bucketOf(key)} of ${row.bias.table.shape[0]}`;
    rows.push([["+ position bias", element("small", {}, note)], value("bias", row.biasOf(key))]);
  }
  const masked = row.isMasked(key);
  const why = masked
    ? " the key comes after the query"
    : keysAreSource(part)
      ? " no padding"
      : " the key is not after the query";
  rows.push([["+ mask", element("small", {}, why)], masked ? "−∞" : "0"]);
  const sources = isT5 ? (row.bias ? ["scale", "bias", "mask"] : ["scale", "mask"]) : ["scale", "mask"];
  return stepOf(
    part,
    `3. ${isT5 ? (row.bias ? "Position bias and mask" : "Mask, and no scale") : "Scale and mask"}`,
    sources,
    sumTable(rows, [["score"], value("score", row.scores[key])]),
  );
}

const SHOWN_KEYS = 8;

/** The row's scores and their softmax. */
function buildSoftmax(part, row, strongest, key) {
  const shown = strongest.slice(0, SHOWN_KEYS);
  if (!shown.includes(key)) shown.push(key);
  const rest = strongest.filter((each) => !shown.includes(each));
  const total = (values) => rest.reduce((sum, each) => sum + values[each], 0);
  const line = (each) =>
    element(
      "tr",
      { class: each === key ? "chosen" : "", "data-row": each },
      numberCell(String(each), "rank"),
      element(
        "td",
        {},
        button(
          {
            class: "key-button",
            click: () => setState({ key: each }),
            "data-key": `key ${each}`,
            "aria-label": `Key ${each}, ${truncate(piece(keys(part)[each]), 60)}`,
          },
          tokenSpan(keys(part)[each]),
        ),
      ),
      numberCell(decimal(row.scores[each])),
      numberCell(decimal(row.exponentials[each])),
      element("td", { class: "number" }, value(`weight-${each}`, row.weights[each])),
      element("td", { class: "share" }, bar(row.weights[each])),
    );
  const table = inScroller(
    { class: "bars softmax" },
    tableHead("", "key", "score", "e^(score − max)", "weight", ""),
    element(
      "tbody",
      {},
      ...shown.map(line),
      rest.length
        ? element(
            "tr",
            { class: "soft" },
            numberCell("", "rank"),
            element("td", {}, others(rest)),
            numberCell(""),
            numberCell(decimal(total(row.exponentials))),
            numberCell(decimal(total(row.weights))),
            element("td", { class: "share" }, bar(total(row.weights))),
          )
        : "",
    ),
    element(
      "tfoot",
      {},
      element(
        "tr",
        {},
        numberCell("", "rank"),
        element("td", {}, "sum"),
        numberCell(""),
        numberCell(decimal(row.sum)),
        numberCell("1"),
        element("td"),
      ),
    ),
  );
  return stepOf(
    part,
    "4. Softmax over the row",
    ["softmax"],
    table,
    equation(
      `e^(${decimal(row.scores[key])} − ${inBrackets(row.highest)}) / ${decimal(row.sum)} = ${decimal(row.exponentials[key])} / ${decimal(row.sum)} = `,
      value("softmax", row.weights[key]),
    ),
  );
}

/** The values of all keys, each times its weight. */
function buildMix(part, head, row, strongest, key) {
  const shown = strongest.slice(0, 4).filter((each) => row.weights[each] > 0);
  if (!shown.includes(key)) shown.push(key);
  const values = keys(part).map((_, each) => times(keyVector(part, "v", head, each), row.weights[each]));
  const add = (chosen) =>
    chosen.reduce((sum, each) => combine(sum, values[each], (a, b) => a + b), new Float64Array(row.q.length));
  const rest = strongest.filter((each) => !shown.includes(each));
  const mixed = add(strongest);
  const scale = largestOf(mixed, ...shown.map((each) => values[each]));
  return stepOf(
    part,
    "5. The mix of values",
    ["mix"],
    sentence("Each key’s v, times its weight. Their sum is the head’s z."),
    ...shown.map((each) =>
      vectorRow(
        [
          element("b", {}, `${decimal(row.weights[each])} v`),
          " ",
          tokenSpan(keys(part)[each]),
          element("small", {}, ` ${each}`),
        ],
        values[each],
        { scale, key: `v-${each}` },
      ),
    ),
    rest.length ? vectorRow([others(rest)], add(rest), { scale }) : null,
    vectorRow([element("b", {}, "z"), " their sum"], mixed, { scale, key: "z" }),
  );
}

/** What the head adds to the residual stream. */
function buildWrite(part, head, query) {
  const isRecorded = computations(part).parts[part.output].head_out !== null;
  const written = isRecorded ? vectorAt(part, "head_out", query, head) : null;
  return stepOf(
    part,
    "6. Written to the stream",
    ["write"],
    sentence(`The head’s rows of the output matrix turn z into ${content.source.sizes.D} numbers.`),
    isRecorded
      ? vectorRow([element("b", {}, "head_out")], written, { key: "head_out" })
      : sentence(WITHOUT_WRITTEN),
    equation(
      "This head’s norm is ",
      value("head-norm", headNormAt(part, head, query)),
      `; all ${model.heads} heads${isT5 ? "" : " and the bias"} together write `,
      `${decimal(normAt("output_norms", part.output, part, query))}, and the stream after it has `,
      `${decimal(normAt("residual_norms", part.residual, part, query))}.`,
    ),
    pythonRecord(siblingOf(part, "head_out"), `[0, ${head}, ${query}]  # (D,)`),
  );
}

/** Another activation of a sublayer: "cross.q.0" for "cross.attn.0". */
const siblingOf = (part, kind) => part.output.replace(/(attn|mlp)(?=\.\d+$)/, kind);
