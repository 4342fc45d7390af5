// onnxruntime-web's WebAssembly build on one ONNX file: `node web_tool.mjs PACKAGES MODEL IN OUT`.
// PACKAGES is the folder that npm installed into. IN and OUT are headers of exchange.py; the samples lie along the
// first dimension and are run one by one. The file has to be one piece, without external data. What is printed is the
// profile: which kernels ran.

import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, join, resolve } from 'node:path';

const ARRAYS = {
  bool: Uint8Array,
  float32: Float32Array,
  float64: Float64Array,
  int32: Int32Array,
  int64: BigInt64Array,
  int8: Int8Array,
  uint8: Uint8Array,
};

function readArrays(header) {
  const { arrays } = JSON.parse(readFileSync(header, 'utf8'));
  return arrays.map(({ name, dtype, shape, file }) => {
    const bytes = readFileSync(join(dirname(header), file));
    // A copy of their own: Node's small buffers share one, at any offset.
    const values = new ARRAYS[dtype](Uint8Array.from(bytes).buffer);
    return { name, dtype, shape, values };
  });
}

function writeArray(header, { dtype, shape, parts }, facts) {
  const file = `${basename(header, '.json')}.0.raw`;
  const bytes = parts.map((part) => Buffer.from(part.buffer, part.byteOffset, part.byteLength));
  writeFileSync(join(dirname(header), file), Buffer.concat(bytes));
  writeFileSync(header, JSON.stringify({ ...facts, arrays: [{ name: 'output', dtype, shape, file }] }));
}

function sample(ort, { dtype, shape, values }, index) {
  const size = values.length / shape[0];
  return new ort.Tensor(dtype, values.slice(index * size, (index + 1) * size), [1, ...shape.slice(1)]);
}

function median(values) {
  const sorted = [...values].sort((left, right) => left - right);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

async function main([packages, model, input, output]) {
  const ort = createRequire(join(resolve(packages), 'package.json'))('onnxruntime-web');
  ort.env.wasm.numThreads = 1;
  const options = { executionProviders: ['wasm'], enableProfiling: true };
  const session = await ort.InferenceSession.create(readFileSync(model), options);
  const inputs = readArrays(input).filter(({ name }) => session.inputNames.includes(name));
  const [results, seconds] = [[], []];
  for (let index = 0; index < inputs[0].shape[0]; index += 1) {
    const feeds = Object.fromEntries(inputs.map((array) => [array.name, sample(ort, array, index)]));
    const start = performance.now();
    const found = await session.run(feeds);
    seconds.push((performance.now() - start) / 1000);
    results.push(found[session.outputNames[0]]);
  }
  session.endProfiling();
  const [{ type, dims }] = results;
  const whole = { dtype: type, shape: [results.length * dims[0], ...dims.slice(1)], parts: results.map((r) => r.data) };
  writeArray(output, whole, { version: ort.env.versions.web, seconds: median(seconds) });
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  console.error(String(error?.message ?? error));
  process.exitCode = 1;
}
