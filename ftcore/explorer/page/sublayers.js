/* The computation panel: embeddings, norms, and the neurons of a feed-forward layer. */

/** Token and position embeddings. */
function buildInput(part) {
  const at = position(part);
  const [where, index] = computationAt(part, at);
  const { embed, pos_embed } = where.input;
  const id = (inEncoder(part) ? source() : run().ids)[at];
  const name = tokenSpan(queries(part)[at]);
  const token = rowOf(embed, index);
  const rows = [vectorRow([element("b", {}, "embed"), " ", name], token, { key: "embed" })];
  if (pos_embed) {
    const place = rowOf(pos_embed, index);
    rows.push(vectorRow([element("b", {}, "pos_embed"), ` position ${at}`], place, { key: "pos_embed" }));
    rows.push(
      vectorRow(
        [element("b", {}, "stream"), " their sum"],
        combine(token, place, (a, b) => a + b),
        { key: "stream" },
      ),
    );
  }
  const { V, D } = content.source.sizes;
  return [
    lede("What the first block reads at ", name.cloneNode(true), ` (${at})`),
    stepOf(
      part,
      "Embedding",
      ["input"],
      sentence(
        `The token’s id is ${id}: row ${id} of the embedding table (${V}, ${D})`,
        pos_embed
          ? `, plus row ${at} of the position table.`
          : `. T5 adds no positions here: a bias in its attention has them.`,
      ),
      ...rows,
      pythonRecord(`${inEncoder(part) ? "encoder." : isT5 ? "decoder." : ""}embed`, `[0, ${at}]  # (D,)`),
    ),
  ];
}

/** The norm before the sublayer, or the final norm: LayerNorm in GPT-2, RMSNorm in T5. */
function buildNorm(part) {
  const at = position(part);
  const isFinal = state.open === "final";
  const [where, index] = computationAt(part, at);
  const { residual, norm } = isFinal ? where.final : where.parts[part.output];
  const stream = rowOf(residual, index);
  const { mean, spread, normed, scaled } = normalize(stream, norm);
  const largest = largestIndices(scaled, 1)[0];
  const [weight, bias] = [norm.weight.values, norm.bias?.values];
  const source = isFinal ? "norm_final" : part.pattern ? "norm_attn" : "norm_mlp";
  const name = isFinal ? `${isT5 ? `${part.stack}.` : ""}norm_final` : siblingOf(part, source);
  const D = stream.length;
  const eps = `${norm.eps}`.replace("-", "−");
  return [
    lede(
      isFinal ? "The norm after the last block, at " : "What the sublayer reads at ",
      tokenSpan(queries(part)[at]),
      ` (${at})`,
    ),
    stepOf(
      part,
      norm.bias ? "LayerNorm" : "RMSNorm",
      [source],
      vectorRow([element("b", {}, "x"), " the stream"], stream, { key: "stream" }),
      norm.bias
        ? sumTable(
            [
              [[`mean of ${D} numbers`], value("mean", mean)],
              [["variance"], value("variance", spread)],
            ],
            [[`√(variance + ${eps})`], value("root", Math.sqrt(spread + norm.eps))],
          )
        : sumTable(
            [[[`mean square of ${D} numbers`], value("mean-square", spread)]],
            [[`√(mean square + ${eps})`], value("root", Math.sqrt(spread + norm.eps))],
          ),
      vectorRow([norm.bias ? "(x − mean) / root" : "x / root"], normed, { key: "normed" }),
      vectorRow(["weight"], weight, { key: "weight" }),
      norm.bias ? vectorRow(["bias"], bias, { key: "bias" }) : null,
      vectorRow([element("b", {}, "normed")], scaled, { key: "scaled" }),
      equation(
        `Largest, dimension ${largest}: `,
        norm.bias ? `(${decimal(stream[largest])} − ${inBrackets(mean)})` : decimal(stream[largest]),
        ` / ${decimal(Math.sqrt(spread + norm.eps))} × ${inBrackets(weight[largest])}`,
        norm.bias ? ` + ${inBrackets(bias[largest])}` : "",
        " = ",
        value("largest", scaled[largest]),
      ),
      pythonRecord(name, `[0, ${at}]  # (D,)`),
    ),
  ];
}

/** Mean (of LayerNorm), variance or mean square, and the vector before and after weight and bias. */
function normalize(stream, norm) {
  const mean = norm.bias ? stream.reduce((sum, each) => sum + each, 0) / stream.length : 0;
  const spread = stream.reduce((sum, each) => sum + (each - mean) ** 2, 0) / stream.length;
  const normed = Float64Array.from(stream, (each) => (each - mean) / Math.sqrt(spread + norm.eps));
  const scaled = normed.map(
    (each, i) => each * norm.weight.values[i] + (norm.bias ? norm.bias.values[i] : 0),
  );
  return { mean, spread, normed, scaled };
}

/** The neurons with the largest activations, and one of them in full. */
function buildNeurons(part) {
  const at = position(part);
  const [where, index] = computationAt(part, at);
  const recorded = where.parts[part.output];
  const of = (name) => recorded[name] && rowOf(recorded[name], index);
  const active = {
    neurons: [...of("neurons")],
    inputs: of("inputs"),
    outputs: of("outputs"),
    gates: of("gates"), // null without
    activations: of("activations"),
  };
  const chosen = Math.max(0, active.neurons.indexOf(state.neuron));
  return [
    lede(
      `The ${active.neurons.length} most active of ${recorded.size} neurons at `,
      tokenSpan(queries(part)[at]),
      ` (${at})`,
    ),
    stepOf(part, "1. Activations", recorded.rows ? [] : ["neurons"], neuronTable(recorded, active, chosen)),
    ...(recorded.rows ? buildNeuron(part, recorded, active, chosen) : [sentence(WITHOUT_WRITTEN)]),
  ];
}

const weightsOf = (rows, name, neuron) => rowOf(rows[name], rows.neurons.values.indexOf(neuron));

function neuronTable(recorded, active, chosen) {
  const { neurons, inputs, outputs, gates, activations } = active;
  const sizes = neurons.map(
    (neuron, n) =>
      Math.abs(activations[n]) * (recorded.rows ? euclideanNorm(weightsOf(recorded.rows, "out", neuron)) : 1),
  );
  const largest = Math.max(...sizes) || 1;
  const head = ["neuron", "input", recorded.function, ...(gates ? ["× gate", "activation"] : [])];
  return inScroller(
    { class: "bars softmax" },
    tableHead(...head, recorded.rows ? "writes" : "size", ""),
    element(
      "tbody",
      {},
      ...neurons.map((neuron, n) =>
        element(
          "tr",
          { class: n === chosen ? "chosen" : "" },
          element(
            "td",
            { class: "rank" },
            button(
              {
                class: "key-button",
                click: () => setState({ neuron }),
                "data-key": `neuron ${neuron}`,
                "aria-label": `Neuron ${neuron}`,
                "aria-pressed": String(n === chosen),
              },
              String(neuron),
            ),
          ),
          numberCell(decimal(inputs[n])),
          numberCell(decimal(outputs[n])),
          ...(gates ? [numberCell(decimal(gates[n])), numberCell(decimal(activations[n]))] : []),
          numberCell(decimal(sizes[n])),
          element("td", { class: "share" }, bar(sizes[n] / largest)),
        ),
      ),
    ),
  );
}

/** The product with the input weights, the activation function, and what one neuron writes. */
function buildNeuron(part, { size, rows, norm, function: name }, active, chosen) {
  const at = position(part);
  const neuron = active.neurons[chosen];
  const [input, output, activation] = [active.inputs, active.outputs, active.activations].map(
    (each) => each[chosen],
  );
  const x = normalize(vectorAt(part, "residual", at), norm).scaled;
  const weights = weightsOf(rows, "into", neuron);
  const products = combine(x, weights, (a, b) => a * b);
  const bias = rows.bias.values[rows.neurons.values.indexOf(neuron)];
  const gate = active.gates?.[chosen];
  return [
    stepOf(
      part,
      `2. Neuron ${neuron}`,
      ["neurons"],
      vectorRow([element("b", {}, "x"), " normed stream"], x, { key: "x" }),
      vectorRow([element("b", {}, "w"), " input weights"], weights, { key: "w" }),
      vectorRow([element("b", {}, "x × w")], products, { note: `sum ${decimal(dot(x, weights))}` }),
      ...dotProduct("dot", ["x", x], ["w", weights]),
      isT5 ? null : equation(`+ bias ${decimal(bias)} = `, value("input", input)),
      equation(`${name}(${decimal(input)}) = `, value("output", output)),
      active.gates
        ? equation(
            `× gate, x · w of a second matrix: ${decimal(output)} × ${inBrackets(gate)} = `,
            value("activation", activation),
          )
        : null,
    ),
    stepOf(
      part,
      "3. Written to the stream",
      ["write_mlp"],
      sentence("The activation times the neuron’s output weights."),
      vectorRow(
        [element("b", {}, `${decimal(activation)} w`), " output"],
        times(weightsOf(rows, "out", neuron), activation),
        { key: "written" },
      ),
      equation(
        `All ${size} neurons${isT5 ? "" : " and the bias"} together write a vector of norm `,
        `${decimal(normAt("output_norms", part.output, part, at))}.`,
      ),
      pythonRecord(siblingOf(part, "neurons"), `[0, ${at}, ${neuron}]`),
    ),
  ];
}
