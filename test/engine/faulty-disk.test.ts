/** When the device itself fails or hangs, whichever engine reads: a typed error at once, and an engine that goes on. */
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { type Engine, MoestreamError } from '../../dist/index.js';
import { readGguf } from '../../dist/model/gguf.js';
import { loadIo } from '../../dist/native.js';
import { generate, withEngine } from '../support/engine.js';
import { BUILT_IN_MODEL } from '../support/golden.js';
import { type LoopDisk, openLoopDisk } from '../support/loop-disk.js';

const PROMPT = 'tar';
const GREEDY = { temperature: 0, maxTokens: 12 } as const;
const PAGE_BYTES = 4096;
/** Opening must stay within it on a busy machine as well. */
const TIMEOUT_MILLIS = 3000;

let disk: LoopDisk | string;
let healthy: string;

beforeAll(async () => {
  disk = openLoopDisk(BUILT_IN_MODEL);
  healthy = await withEngine(
    { model: BUILT_IN_MODEL },
    async (engine) => (await generate(engine, PROMPT, GREEDY)).text,
  );
});

afterEach(() => {
  if (typeof disk !== 'string') disk.renew();
});

afterAll(() => {
  if (typeof disk !== 'string') disk.end();
});

/** What came of a generation: its text, and the error it ended with. */
async function outcome(engine: Engine): Promise<{ text: string; error: unknown }> {
  let text = '';
  try {
    for await (const piece of engine.generate(PROMPT, GREEDY)) text += piece.text;
    return { text, error: undefined };
  } catch (error) {
    return { text, error };
  }
}

/** Whether a byte of the file belongs to a matrix of that expert, or to the page that it begins in. */
function isOfExpert(byte: number, layer: number, expert: number): boolean {
  const { tensors } = readGguf(BUILT_IN_MODEL);
  return ['gate', 'up', 'down'].some((matrix) => {
    const tensor = tensors.get(`blk.${layer}.ffn_${matrix}_exps.weight`)!;
    const byteLength = tensor.byteLength / tensor.shape.at(-1)!;
    const from = tensor.offsetBytes + expert * byteLength;
    return byte > from - PAGE_BYTES && byte < from + byteLength;
  });
}

describe.each(['threads', 'uring'] as const)('a disk read with %s', (ioEngine) => {
  const refusal = ioEngine === 'uring' && loadIo().uringRefusal() !== 0 ? 'no io_uring here' : undefined;

  it.for(['direct', 'buffered'] as const)('that fails (EIO), %s', async (io, { skip }) => {
    if (typeof disk === 'string' || refusal !== undefined) return skip(refusal ?? String(disk));
    const device = disk;
    await withEngine({ model: device.path, ioEngine, io }, async (engine) => {
      device.cutOff(1_000_000);
      const { text, error } = await outcome(engine);
      expect(text).toBe('');
      expect(MoestreamError.is(error) && error.code).toBe('READ_FAILED');
      const named = /^EIO reading (.*) at byte (\d+) \(expert (\d+) of layer (\d+)\)/.exec(
        String((error as Error).message),
      );
      expect(named?.[1]).toBe(device.path);
      const [byte, expert, layer] = named!.slice(2).map(Number) as [number, number, number];
      expect(isOfExpert(byte, layer, expert)).toBe(true);
      device.mend();
      expect(await outcome(engine)).toEqual({ text: healthy, error: undefined });
    });
  });

  it('that does not answer', async ({ skip }) => {
    if (typeof disk === 'string' || refusal !== undefined) return skip(refusal ?? String(disk));
    const device = disk;
    const cannotHold = device.holdRefusal;
    if (cannotHold !== undefined) return skip(cannotHold);
    await withEngine(
      { model: device.path, ioEngine, io: 'direct', readTimeoutMillis: TIMEOUT_MILLIS },
      async (engine) => {
        device.hold();
        const { text, error } = await outcome(engine);
        expect(text).toBe('');
        expect(error).toMatchObject({
          code: 'READ_TIMEOUT',
          message: expect.stringMatching(/^no bytes arrived for expert \d+ of layer \d+ within \d+ ms/),
        });
        device.release();
        expect(await outcome(engine)).toEqual({ text: healthy, error: undefined });
      },
    );
  });
});
