/**
 * Child process: llama.cpp on the CPU through node-llama-cpp, which is not a dependency: only what is used of it is
 * declared here. It is given the ids of the answer one by one, so that it computes what moestream computes.
 */
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { peerFolder } from './install.ts';
import { contextOf, type Job, PASSES, type Pass, passOf, serve } from './job.ts';

interface Sequence {
  evaluate(
    tokens: readonly number[],
    options: { temperature: number; yieldEogToken: boolean },
  ): AsyncGenerator<number, void, number | undefined>;
  clearHistory(): Promise<void>;
}

interface Llama {
  readonly systemInfo: string;
  readonly llamaCppRelease: { readonly release: string };
  loadModel(options: { modelPath: string; gpuLayers: number }): Promise<{
    createContext(options: {
      contextSize: number;
      threads: number;
      batchSize: number;
    }): Promise<{ getSequence(): Sequence }>;
  }>;
}

interface Library {
  getLlama(options: { gpu: false; build: 'never'; logLevel: string; maxThreads: number }): Promise<Llama>;
}

const BATCH_MAX = 512;

async function evaluate(
  sequence: Sequence,
  job: Job,
  prompt: readonly number[],
  answer: readonly number[],
): Promise<{ chosen: number[]; pass: Pass }> {
  const chosen: number[] = [];
  const arrivedMillis: number[] = [];
  const beganMillis = performance.now();
  const tokens = sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true });
  let next = await tokens.next();
  while (!next.done) {
    arrivedMillis.push(performance.now());
    chosen.push(next.value);
    if (chosen.length === answer.length) break;
    next = await tokens.next(answer[chosen.length - 1]);
  }
  await tokens.return();
  if (chosen.length < answer.length) throw new Error(`llama.cpp ended after ${chosen.length} tokens`);
  return { chosen, pass: passOf(job, beganMillis, arrivedMillis) };
}

await serve(async (job) => {
  const entry = createRequire(`${peerFolder()}/`).resolve('node-llama-cpp');
  const { getLlama } = (await import(pathToFileURL(entry).href)) as Library;
  const llama = await getLlama({ gpu: false, build: 'never', logLevel: 'error', maxThreads: job.threads });
  const model = await llama.loadModel({ modelPath: job.model, gpuLayers: 0 });
  const context = await model.createContext({
    contextSize: contextOf(job),
    threads: job.threads,
    batchSize: Math.min(BATCH_MAX, Math.max(32, job.promptTokens)),
  });
  const sequence = context.getSequence();
  const { prompt, answer } = job;
  if (prompt === undefined || answer === undefined) throw new Error('this job is for moestream');
  await evaluate(sequence, job, prompt.slice(0, 1), answer.slice(0, 1));
  const passes: Pass[] = [];
  let chosen: number[] = [];
  while (passes.length < PASSES) {
    await sequence.clearHistory();
    const evaluated = await evaluate(sequence, job, prompt, answer);
    passes.push(evaluated.pass);
    chosen = evaluated.chosen;
  }
  const features = [...llama.systemInfo.matchAll(/(\w+) = 1/g)].map((match) => match[1]);
  const about = `llama.cpp ${llama.llamaCppRelease.release}, mmap, ${features.join(' ')}`;
  return { passes, prompt, chosen, about };
});
