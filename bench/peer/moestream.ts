/** Child process: moestream through its public library, in precision fast. */
import { type Engine, open } from '#dist/index.js';
import { type Answer, contextOf, type Job, PASSES, type Pass, passOf, serve } from './job.ts';

const SEEDS = 16;

/** Ids spread over the vocabulary, without control tokens. */
function promptOf(engine: Engine, count: number, seed: number): number[] {
  const { tokenizer } = engine.model;
  const size = Math.min(engine.vocabularySize, tokenizer.vocabularySize);
  const ids: number[] = [];
  for (let state = seed; ids.length < count; ) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    const id = Math.floor((state / 2 ** 32) * size);
    if (!tokenizer.isControl(id) && !tokenizer.eogIds.has(id)) ids.push(id);
  }
  return ids;
}

async function generate(
  engine: Engine,
  job: Job,
  prompt: readonly number[],
): Promise<{ chosen: number[]; pass: Pass }> {
  const chosen: number[] = [];
  const arrivedMillis: number[] = [];
  const beganMillis = performance.now();
  for await (const piece of engine.generate({ ids: prompt }, { temperature: 0, maxTokens: job.tokens })) {
    if (piece.token === undefined) continue;
    chosen.push(piece.token);
    arrivedMillis.push(performance.now());
  }
  return { chosen, pass: passOf(job, beganMillis, arrivedMillis) };
}

/** The first prompt whose answer does not end by itself. */
async function findPrompt(engine: Engine, job: Job): Promise<Answer> {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const prompt = promptOf(engine, job.promptTokens, seed);
    const { chosen } = await generate(engine, job, prompt);
    if (chosen.length === job.tokens) return { passes: [], prompt, chosen, about: '' };
  }
  throw new Error(`none of ${SEEDS} prompts has an answer of ${job.tokens} tokens; ask for fewer`);
}

await serve(async (job) => {
  const notices: string[] = [];
  const engine = await open({
    model: job.model,
    threads: job.threads,
    contextLength: contextOf(job),
    precision: 'fast',
    onNotice: (sentence) => notices.push(sentence),
    ...(job.memory === undefined ? {} : { memory: job.memory }),
    ...(job.chunk === undefined ? {} : { chunk: job.chunk }),
  });
  try {
    const { prompt } = job;
    if (prompt === undefined) return await findPrompt(engine, job);
    // Everything that is made when it is first needed.
    for await (const _ of engine.generate({ ids: prompt.slice(0, 1) }, { maxTokens: 1 }));
    const passes: Pass[] = [];
    let chosen: number[] = [];
    while (passes.length < PASSES) {
      const generated = await generate(engine, job, prompt);
      passes.push(generated.pass);
      chosen = generated.chosen;
    }
    const { slabBytes, allExpertsBytes } = engine.plan;
    const share = Math.round((100 * slabBytes) / allExpertsBytes);
    const about = [
      `cache for ${share} % of the experts`,
      engine.directIo ? 'direct reads' : 'buffered reads',
    ];
    return { passes, prompt, chosen, about: [...about, ...notices].join('; ') };
  } finally {
    await engine.close();
  }
});
