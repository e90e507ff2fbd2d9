/** Running the real engine in tests. */
import { type Engine, type GenerateOptions, type OpenOptions, open, type Prompt } from '../../dist/index.js';

/** Opens an engine in exact precision, does the work, and closes it whatever happens. */
export async function withEngine<T>(options: OpenOptions, work: (engine: Engine) => Promise<T>): Promise<T> {
  const engine = await open({ readers: 4, precision: 'exact', ...options });
  try {
    return await work(engine);
  } finally {
    await engine.close();
  }
}

/** (positions, vocabulary) logits, and (positions, layers, top-k) selected experts. */
export async function score(
  engine: Engine,
  ids: readonly number[],
): Promise<{ logits: Float32Array; experts: Int32Array }> {
  const { layers, expertsPerToken } = engine.model.hyperparameters;
  const logits = new Float32Array(ids.length * engine.vocabularySize);
  const routing = new Int32Array(new SharedArrayBuffer(ids.length * layers * expertsPerToken * 4));
  await engine.logits(ids, (row, position) => logits.set(row, position * engine.vocabularySize), { routing });
  return { logits, experts: routing };
}

export async function generate(
  engine: Engine,
  prompt: Prompt,
  options: GenerateOptions,
): Promise<{ text: string; tokens: number[]; finishReason: string }> {
  const generation = engine.generate(prompt, options);
  let text = '';
  const tokens: number[] = [];
  for await (const piece of generation) {
    text += piece.text;
    if (piece.token !== undefined) tokens.push(piece.token);
  }
  return { text, tokens, finishReason: generation.result.finishReason };
}
