// llama.cpp for benchmarks/llm.py: node llama_cpp.mjs FOLDER MODEL.gguf THREADS LONGEST; a line of JSON in, a line of JSON out.
import readline from "node:readline";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [folder, modelPath, threads, longest] = process.argv.slice(2);
const entry = path.resolve(folder, "node_modules/node-llama-cpp/dist/index.js");
const { getLlama } = await import(pathToFileURL(entry));
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: Number(threads) });
const model = await llama.loadModel({ modelPath });

async function run({ prompt, generated, batch }) {
    const context = await model.createContext({
        contextSize: prompt + generated + 16, batchSize: Math.max(512, batch), threads: Number(threads), sequences: batch,
    });
    const start = performance.now();
    const times = await Promise.all(Array.from({ length: batch }, async () => {
        const sequence = context.getSequence();
        const tokens = Array.from({ length: prompt }, () => 10 + Math.floor(Math.random() * (model.trainContextSize > 0 ? 20000 : 400)));
        const seen = [];
        for await (const _ of sequence.evaluate(tokens, { temperature: 0, yieldEogToken: true })) {
            seen.push((performance.now() - start) / 1000);
            if (seen.length >= generated) break;
        }
        return seen;
    }));
    await context.dispose();
    return { first_s: Math.max(...times.map((t) => t[0])), last_s: Math.max(...times.map((t) => t[t.length - 1])) };
}

for await (const line of readline.createInterface({ input: process.stdin }))
    console.log(JSON.stringify(await run(JSON.parse(line))));
