/**
 * Bytes per second from disk to slab while a model generates that does not fit: the whole engine, cold.
 *
 * Interleaves the settings, three rounds each, and prints medians: GB/s over the time of the answer, the share of it in
 * which compute waited for reads, tok/s, hit rate. Run: npm run bench:streaming -- MODEL [--memory 3G] [--tokens 16]
 */
import { parseArgs } from 'node:util';
import { median } from '#dist/eval/statistics.js';
import { type OpenOptions, open } from '#dist/index.js';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { memory: { type: 'string', default: '3G' }, tokens: { type: 'string', default: '16' } },
});
const model = positionals[0];
if (model === undefined) throw new Error('name a model that is larger than --memory');

const ROUNDS = 3;
const SETTINGS: readonly (Partial<OpenOptions> & { readonly name: string })[] = [
  { name: 'uring window 2', ioEngine: 'uring', window: 2 },
  { name: 'uring window all', ioEngine: 'uring', window: 0 },
  // The default window: 2, or what the readers allow where an expert is nine spans.
  { name: 'threads window 2', ioEngine: 'threads' },
  { name: 'threads split 4', ioEngine: 'threads', window: 0, split: 4 },
];

interface Figures {
  readonly gigabytesPerSecond: number;
  readonly waitShare: number;
  readonly tokensPerSecond: number;
  readonly promptTokensPerSecond: number;
  readonly hitRate: number;
}

async function run(setting: Partial<OpenOptions>): Promise<Figures> {
  const engine = await open({
    model: model!,
    memory: values.memory,
    contextLength: 512,
    io: 'direct',
    ...setting,
  });
  try {
    const ids = Array.from({ length: 64 }, (_, index) => (index * 37) % 256);
    const answer = engine.generate({ ids }, { temperature: 0, maxTokens: Number(values.tokens) });
    for await (const _ of answer);
    const { stats } = answer.result;
    const seconds = (stats.promptMicros + stats.decodeMicros) / 1e6;
    return {
      gigabytesPerSecond: stats.bytesRead / seconds / 1e9,
      waitShare: stats.waitMicros / 1e6 / seconds,
      tokensPerSecond: stats.decodeTokensPerSecond,
      promptTokensPerSecond: stats.promptTokensPerSecond,
      hitRate: stats.hitRate,
    };
  } finally {
    await engine.close();
  }
}

const found = SETTINGS.map(() => [] as Figures[]);
for (let round = 0; round < ROUNDS; round++) {
  for (const [index, { name: _, ...setting }] of SETTINGS.entries()) found[index]!.push(await run(setting));
}
console.log('setting           GB/s  waits  prompt tok/s  decode tok/s  hits');
SETTINGS.forEach(({ name }, index) => {
  const of = (key: keyof Figures): number => median(found[index]!.map((figures) => figures[key]));
  const share = `${(100 * of('waitShare')).toFixed(0)} %`;
  const hits = `${(100 * of('hitRate')).toFixed(0)} %`;
  const speeds = `${of('promptTokensPerSecond').toFixed(1).padStart(12)}  ${of('tokensPerSecond').toFixed(1).padStart(12)}`;
  console.log(
    `${name.padEnd(17)} ${of('gigabytesPerSecond').toFixed(2)}  ${share.padStart(5)}  ${speeds}  ${hits}`,
  );
});
