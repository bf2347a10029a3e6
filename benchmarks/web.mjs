// Times text encoders in ONNX Runtime Web (WebAssembly, one thread), the runtime of browsers, beside the float model:
//
//   cd "$(mktemp -d)" && npm install onnxruntime-web@1.30.0
//   node …/benchmarks/web.mjs FLOAT.onnx INT8.onnx...
//
// Prints a line a model: cosine of the first output to the float model's, milliseconds of the fastest run, how many times as fast.
// Ends with 1 where an output is no number or has a cosine below 0.9.
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const TOKENS = 32;
const SECONDS = 3;

const required = createRequire(pathToFileURL(process.cwd() + '/')).resolve('onnxruntime-web');
const ort = (await import(pathToFileURL(required))).default;
ort.env.wasm.numThreads = 1;
ort.env.logLevel = 'error';

function inputs(session) {
  const filled = (value) => new ort.Tensor('int64', BigInt64Array.from({ length: TOKENS }, (_, i) => BigInt(value(i))), [1, TOKENS]);
  const values = { input_ids: (i) => 1000 + 37 * i, attention_mask: () => 1, token_type_ids: () => 0 };
  return Object.fromEntries(session.inputNames.map((name) => [name, filled(values[name])]));
}

async function run(file) {
  const session = await ort.InferenceSession.create(file, { executionProviders: ['wasm'] });
  const feeds = inputs(session);
  const output = (await session.run(feeds))[session.outputNames[0]].data;
  let best = Infinity;
  for (const end = performance.now() + 1000 * SECONDS; performance.now() < end; ) {
    const start = performance.now();
    await session.run(feeds);
    best = Math.min(best, performance.now() - start);
  }
  return { output, best };
}

function cosine(a, b) {
  let ab = 0, aa = 0, bb = 0;
  for (let i = 0; i < a.length; i++) {
    ab += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  return ab / Math.sqrt(aa * bb);
}

const [float, ...others] = process.argv.slice(2);
const reference = await run(float);
console.log(`${float}  ${reference.best.toFixed(1)} ms`);
for (const file of others) {
  const { output, best } = await run(file);
  const near = cosine(output, reference.output);
  console.log(`${file}  cosine ${near.toFixed(4)}  ${best.toFixed(1)} ms  ${(reference.best / best).toFixed(2)}x`);
  if (!(near >= 0.9)) {
    process.exitCode = 1;
  }
}
