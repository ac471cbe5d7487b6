/* The recorded data: unpacking, and lookups by run, sublayer and position. */

const TYPED_ARRAYS = { u1: Uint8Array, u2: Uint16Array, i4: Int32Array, f4: Float32Array };

/** Unpack an array of serialize.py in place: `data` becomes `values`. */
async function unpack(array) {
  if (array.values) return array;
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(array.data) : fromBase64(array.data);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  array.values = new TYPED_ARRAYS[array.dtype](await new Response(stream).arrayBuffer());
  delete array.data;
  return array;
}

function fromBase64(data) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

const UNPACKED_LATER = ["attention", "computations"]; // on first use

/** Unpack all arrays in nested data, except those under UNPACKED_LATER. */
async function unpackAll(data) {
  if (data === null || typeof data !== "object") return;
  if (data.dtype) {
    await unpack(data);
    return;
  }
  await Promise.all(
    Object.entries(data).map(([key, value]) => (UNPACKED_LATER.includes(key) ? null : unpackAll(value))),
  );
}

/** A view of one row along the last dimension. */
function rowOf(array, ...indices) {
  const width = array.shape.at(-1);
  let index = 0;
  indices.forEach((i, dimension) => (index = index * array.shape[dimension] + i));
  return array.values.subarray(index * width, (index + 1) * width);
}

const content = JSON.parse(byId("content").textContent);
byId("content").remove(); // free the JSON text
const model = content.model;
const stacks = model.stacks;
const isT5 = model.family === "T5";
const live = content.live;
let recording = content.recording;
const tokenTexts = {}; // by token id

/** Sublayers (`part`) by the name of their output, with the stack and block they belong to. */
const parts = {};
for (const stack of stacks) {
  stack.blocks.forEach((block, number) => {
    for (const part of block) parts[part.output] = { ...part, stack: stack.name, block: number };
  });
}

const title = (part) => `${isT5 ? `${part.stack}, ` : ""}block ${part.block}, ${part.kind}`;
const run = () => recording.runs[state.run];
const positions = () => run().ids.length - 1; // decoder inputs; the last id is output only
const source = () => recording.source[0];
/** Tokens for display: ids, or the text of a token that is a part of a character. */
const sourceTokens = () => source().map((id, at) => recording.source_characters[at] ?? id);
const runTokens = () => run().ids.map((id, at) => run().characters[at] ?? id);
const promptLength = () => run().prompt_length;

const inEncoder = (part) => part.stack === "encoder"; // where its queries are
const keysAreSource = (part) => part.stack === "encoder" || part.kind === "cross-attention"; // where its keys are
const queries = (part) => (inEncoder(part) ? sourceTokens() : runTokens().slice(0, -1));
const keys = (part) => (keysAreSource(part) ? sourceTokens() : runTokens().slice(0, -1));
const position = (part) => (inEncoder(part) ? state.src : state.at);

/** The run that has a position's recording, and the index there: a shared prompt is in the first run only. */
function runAt(at) {
  const own = run();
  return at >= own.start ? [own, at - own.start] : [recording.runs[0], at];
}

/** A norm at a position; `group` is "output_norms" or "residual_norms". */
function normAt(group, name, part, at) {
  if (inEncoder(part)) return recording.encoder[group][name].values[at];
  const [where, index] = runAt(at);
  return where[group][name].values[index];
}

function headNormAt(part, head, at) {
  if (inEncoder(part)) return rowOf(recording.encoder.head_norms[part.pattern], head)[at];
  const [where, index] = runAt(at);
  return rowOf(where.head_norms[part.pattern], head)[index];
}

/** One query's attention as levels 0 to 255 of the square root; null while it is being unpacked. */
function attentionLevels(part, head, query) {
  const [where, index] = inEncoder(part) ? [recording.encoder, query] : runAt(query);
  const array = where.attention[part.pattern];
  if (array.values) return rowOf(array, head, index);
  array.waiting ??= renderAfter(unpack(array));
  return null;
}

let waiting = 0; // promises that the panel needs

/** Mark the panel as busy until a promise is fulfilled, then render. */
async function renderAfter(promise) {
  waiting += 1;
  byId("panel").ariaBusy = "true";
  await promise;
  waiting -= 1;
  byId("panel").ariaBusy = String(waiting > 0);
  render();
}

const fromLevel = (level) => (level / 255) ** 2;

/** The next tokens at a position as [id, probability], most likely first, and the chosen token. */
function nextTokens(at) {
  const [where, index] = runAt(at);
  const { ids, logits, log_sums, chosen_logit, chosen_rank } = where.next;
  const step = recording.temperatures.findIndex((value) => Math.abs(value - state.temperature) < 0.01);
  const temperature = recording.temperatures[step];
  const logit = rowOf(logits, index);
  const shown = state.k > 0 ? Math.min(state.k, logit.length) : logit.length;
  let logSum = rowOf(log_sums, index)[step];
  if (state.k > 0) {
    let sum = 0;
    for (let rank = 0; rank < shown; rank++) sum += Math.exp((logit[rank] - logit[0]) / temperature);
    logSum = logit[0] / temperature + Math.log(sum);
  }
  const probability = (value) => Math.exp(value / temperature - logSum);
  const tokens = Array.from(rowOf(ids, index).subarray(0, shown), (id, rank) => [
    id,
    probability(logit[rank]),
  ]);
  const rank = chosen_rank.values[index];
  return {
    tokens,
    chosen: run().ids[at + 1],
    probability: state.k > 0 && rank >= shown ? 0 : probability(chosen_logit.values[index]),
    rank,
    plain: (id) => {
      const known = rowOf(ids, index).indexOf(id);
      const unscaled = recording.temperatures.indexOf(1);
      return known < 0 ? null : Math.exp(logit[known] - rowOf(log_sums, index)[unscaled]);
    },
  };
}

/** The logit lens after a block as [id, probability], most likely first. */
function lensAt(block, at) {
  const [where, index] = runAt(at);
  const probabilities = rowOf(where.lens.probs, block, index);
  return Array.from(rowOf(where.lens.ids, block, index), (id, rank) => [id, probabilities[rank]]);
}

const MAX_CHARS = 60; // of a token's text
const piece = (token) => (typeof token === "string" ? token : (tokenTexts[token] ?? `#${token}`));
const truncate = (text, most = MAX_CHARS) =>
  text.length > most ? `${[...text.slice(0, most)].join("")}…` : text;
const label = (id, most) => truncate(piece(id), most).replace(/^ /, "␣");
const quote = (id) => `‘\u2068${label(id, 30)}\u2069’`; // isolates right-to-left text

/** A token in running text; a leading space is shown as ␣. */
const tokenSpan = (id, properties = {}) =>
  element("span", { class: "token", dir: "auto", title: truncate(piece(id), 300), ...properties }, label(id));
