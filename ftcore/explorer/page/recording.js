/* What was recorded: arrays are unpacked, and questions answered, such as where a head looks. */

const KINDS = { u1: Uint8Array, u2: Uint16Array, i4: Int32Array, f4: Float32Array };

/** Unpack an array of packing.py in place: `values` beside its `shape`. */
async function unpack(array) {
  if (array.values) return array;
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(array.data) : fromBase64(array.data);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  array.values = new KINDS[array.dtype](await new Response(stream).arrayBuffer());
  delete array.data;
  return array;
}

function fromBase64(data) {
  const text = atob(data);
  const bytes = new Uint8Array(text.length);
  for (let place = 0; place < text.length; place++) bytes[place] = text.charCodeAt(place);
  return bytes;
}

/** Unpack all arrays in something that was recorded. Attention waits until somebody looks at it. */
async function unpackAll(said) {
  if (said === null || typeof said !== "object") return;
  if (said.dtype) {
    await unpack(said);
    return;
  }
  await Promise.all(
    Object.entries(said).map(([key, value]) => (key === "attention" ? null : unpackAll(value))),
  );
}

/** One row of an array along its last dimension, without a copy. */
function rowOf(array, ...places) {
  const width = array.shape.at(-1);
  let index = 0;
  places.forEach((place, dimension) => (index = index * array.shape[dimension] + place));
  return array.values.subarray(index * width, (index + 1) * width);
}

const content = JSON.parse(byId("content").textContent);
byId("content").remove(); // the text is not needed twice
const model = content.model;
const stacks = model.stacks;
const isT5 = model.family === "T5";
const live = content.live;
let recording = content.recording;
const texts = {}; // of tokens, by their ids

/** Every part of the network by the name of what it writes to the residual stream. */
const parts = {};
for (const stack of stacks) {
  stack.blocks.forEach((block, number) => {
    for (const part of block) parts[part.writes] = { ...part, stack: stack.name, block: number };
  });
}

const title = (part) => `${isT5 ? `${part.stack}, ` : ""}block ${part.block}, ${part.kind}`;
const run = () => recording.runs[state.run];
const positions = () => run().ids.length - 1; // that the decoder reads; the last token is only written
const source = () => recording.source[0];
const promptLength = () => run().prompt_length;

const readsSource = (part) => part.stack === "encoder"; // its queries
const looksAtSource = (part) => part.stack === "encoder" || part.kind === "cross-attention"; // its keys
const queries = (part) => (readsSource(part) ? source() : run().ids.slice(0, -1));
const keys = (part) => (looksAtSource(part) ? source() : run().ids.slice(0, -1));
const position = (part) => (readsSource(part) ? state.src : state.at);

/** Where a run's numbers at a position are: [run, index]. Runs leave out what the first one has as well. */
function place(at) {
  const own = run();
  return at >= own.start ? [own, at - own.start] : [recording.runs[0], at];
}

/** How large something is at a position: a part of "written" or "stream". */
function size(group, name, part, at) {
  if (readsSource(part)) return recording.encoder[group][name].values[at];
  const [where, index] = place(at);
  return where[group][name].values[index];
}

function headSize(part, head, at) {
  if (readsSource(part)) return rowOf(recording.encoder.heads[part.pattern], head)[at];
  const [where, index] = place(at);
  return rowOf(where.heads[part.pattern], head)[index];
}

/** Attention from one query, as levels 0 to 255 of the square root; null while it is being unpacked. */
function levels(part, head, query) {
  const [where, index] = readsSource(part) ? [recording.encoder, query] : place(query);
  const array = where.attention[part.pattern];
  if (array.values) return rowOf(array, head, index);
  array.waiting ??= unpackAttention(array);
  return null;
}

let unpacking = 0; // how many arrays

async function unpackAttention(array) {
  unpacking += 1;
  byId("panel").ariaBusy = "true";
  await unpack(array);
  unpacking -= 1;
  byId("panel").ariaBusy = String(unpacking > 0);
  show();
}

const weight = (level) => (level / 255) ** 2;

/** What may come next at a position: [id, probability], the likeliest first, and the written token. */
function nextTokens(at) {
  const [where, index] = place(at);
  const { ids, logits, log_sums, chosen_logit, chosen_rank } = where.next;
  const step = recording.temperatures.findIndex((one) => Math.abs(one - state.temperature) < 0.01);
  const temperature = recording.temperatures[step];
  const logit = rowOf(logits, index);
  const shown = state.k > 0 ? Math.min(state.k, logit.length) : logit.length;
  let logSum = rowOf(log_sums, index)[step];
  if (state.k > 0) {
    let sum = 0;
    for (let rank = 0; rank < shown; rank++) sum += Math.exp((logit[rank] - logit[0]) / temperature);
    logSum = logit[0] / temperature + Math.log(sum);
  }
  const probability = (one) => Math.exp(one / temperature - logSum);
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
      const one = recording.temperatures.indexOf(1);
      return known < 0 ? null : Math.exp(logit[known] - rowOf(log_sums, index)[one]);
    },
  };
}

/** What the model would say after a block: [id, probability], the likeliest first. */
function lensOf(block, at) {
  const [where, index] = place(at);
  const probabilities = rowOf(where.lens.probabilities, block, index);
  return Array.from(rowOf(where.lens.ids, block, index), (id, rank) => [id, probabilities[rank]]);
}

const MOST_LETTERS = 60; // of a token; more would only be cut off by its box
const piece = (id) => texts[id] ?? `#${id}`;
const short = (text, most = MOST_LETTERS) =>
  text.length > most ? `${[...text.slice(0, most)].join("")}…` : text;
const marked = (id, most) => short(piece(id), most).replace(/^ /, "␣");
const quoted = (id) => `‘\u2068${marked(id, 30)}\u2069’`; // isolated: Arabic would turn what follows

/** A token as it stands in a list: a space before it is drawn. */
const token = (id, properties = {}) =>
  element("span", { class: "token", dir: "auto", title: short(piece(id), 300), ...properties }, marked(id));
