/**
 * Checkpoints of MLX and Hugging Face run like a GGUF: the same numbers, from any parts, packed or not.
 *
 * The committed MLX fixture was made from the random nano model by the converter's conventions (4 bits in groups of 32, the
 * router in 8); its reference logits are those of the same weights in a float32 GGUF. The trained model's come from
 * llama.cpp on dequantised weights.
 */
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import type { Checkpoint, StoredTensor } from '../../dist/model/checkpoint.js';
import { openModel } from '../../dist/model/model.js';
import { pack } from '../../dist/pack/pack.js';
import { verify } from '../../dist/pack/verify.js';
import { makeModel } from '../../dist-scripts/scripts/model-maker/make-model.js';
import { mixture, writeCheckpoint } from '../support/checkpoint-builder.js';
import { runCli } from '../support/cli.js';
import { generate, score, withEngine } from '../support/engine.js';
import { contentOf, temporaryFolder } from '../support/folder.js';
import {
  BUILT_IN_MODEL,
  fixture,
  missingShared,
  negativeLogLikelihood,
  readFloats,
  readJson,
  relativeRms,
  shared,
  tldrGolden,
} from '../support/golden.js';

const PRECISE = 1e-5;
const folder = temporaryFolder();
const NANO = fixture('golden/nano-F32/model.gguf');
const NANO_MLX = fixture('mlx/nano-4bit');
const { ids } = readJson<{ ids: number[] }>(fixture('golden/nano-F32/golden.json'));

async function logitsOf(model: string, parts: object = {}, tokens = ids): Promise<Float32Array> {
  return withEngine({ model, contextLength: tokens.length, ...parts }, async (engine) => {
    const { logits } = await score(engine, tokens);
    return logits;
  });
}

describe('the committed MLX checkpoint', () => {
  it('has the logits of its weights in float32', async () => {
    const logits = await logitsOf(NANO_MLX);
    expect(relativeRms(logits, readFloats(fixture('mlx/nano-4bit.logits.f32')))).toBeLessThan(PRECISE);
  });

  it('stays within what 8-bit activations cost in fast precision', async () => {
    const logits = await logitsOf(NANO_MLX, { precision: 'fast' });
    expect(relativeRms(logits, readFloats(fixture('mlx/nano-4bit.logits.f32')))).toBeLessThan(0.08);
  });

  it('answers from its own tokenizer and template', async () => {
    const answer = await withEngine({ model: NANO_MLX }, (engine) =>
      generate(engine, 'Hello', { temperature: 0, maxTokens: 8 }),
    );
    expect(answer.tokens.length).toBeGreaterThan(0);
  });

  it('packs into the same bits, verifies, and shows where it is damaged', async () => {
    const packed = join(folder, 'packed');
    await pack(NANO_MLX, packed);
    const plain = await logitsOf(NANO_MLX);
    expect(Buffer.compare(Buffer.from((await logitsOf(packed)).buffer), Buffer.from(plain.buffer))).toBe(0);
    expect(await verify(packed)).toMatchObject({ kind: 'packed', ok: true, experts: 4 * 8 });
    for (const name of ['tokenizer.json', 'model.safetensors', 'experts-002.bin']) {
      const damaged = join(folder, `damaged-${name}`);
      cpSync(packed, damaged, { recursive: true });
      const bytes = readFileSync(join(damaged, name));
      const at = name === 'experts-002.bin' ? 3 * 16384 + 100 : bytes.length - 2;
      bytes[at] = bytes[at]! ^ 1;
      writeFileSync(join(damaged, name), bytes);
      expect(await verify(damaged)).toMatchObject({ ok: false, damageCount: 1, damages: [{ file: name }] });
    }
  });
});

describe('packing a checkpoint', () => {
  it('goes on where it was interrupted, to the same bytes, and refuses another model', async () => {
    const whole = join(folder, 'whole');
    await pack(NANO_MLX, whole);
    const expected = contentOf(whole);
    expect(Object.keys(expected)).toEqual([
      'config.json',
      'experts-000.bin',
      'experts-001.bin',
      'experts-002.bin',
      'experts-003.bin',
      'manifest.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
    ]);
    for (const stopAfter of [
      'config.json',
      'tokenizer_config.json',
      'model.safetensors',
      'experts-001.bin',
    ]) {
      const out = join(folder, `interrupted-${stopAfter}`);
      const controller = new AbortController();
      const onFile = (name: string): void => {
        if (name === stopAfter) controller.abort();
      };
      await expect(pack(NANO_MLX, out, { signal: controller.signal, onFile })).rejects.toMatchObject({
        code: 'ABORTED',
      });
      expect(() => openModel(out)).toThrow(/its packing has not been finished/);
      const { writtenBytes, totalBytes } = await pack(NANO_MLX, out);
      expect(writtenBytes).toBeLessThan(totalBytes);
      expect(contentOf(out)).toEqual(expected);
    }
    const other = join(folder, 'other-checkpoint');
    writeCheckpoint(NANO, other, { dialect: 'hf' });
    await expect(pack(other, whole)).rejects.toMatchObject({ code: 'PACK_REFUSED' });
  });

  it('keeps every tensor that is no expert, by name, type, shape and bytes', async () => {
    const source = join(folder, 'to-pack');
    writeCheckpoint(NANO, source, { dialect: 'hf', shards: 2 });
    const out = join(folder, 'packed-hf');
    await pack(source, out);
    const before = openModel(source).source as Checkpoint;
    const after = openModel(out).source as Checkpoint;
    const read = ({ files }: Checkpoint, tensor: StoredTensor): string =>
      readFileSync(files[tensor.file]!.path)
        .subarray(tensor.offsetBytes, tensor.offsetBytes + tensor.byteLength)
        .toString('base64');
    const content = (from: Checkpoint) =>
      from.stored
        .filter(({ name }) => !name.includes('.mlp.experts.'))
        .map((tensor) => [tensor.name, tensor.dtype, tensor.shape, read(from, tensor)])
        .sort();
    expect(after.stored.some(({ name }) => name.includes('.mlp.experts.'))).toBe(false);
    expect(content(after)).toEqual(content(before));
    expect(relativeRms(await logitsOf(out), readFloats(fixture('golden/nano-F32/ref.f32')))).toBeLessThan(
      PRECISE,
    );
  });

  it('of a later version, of other texts or of types without a place is refused', async () => {
    const out = join(folder, 'manifest');
    await pack(NANO_MLX, out);
    const path = join(out, 'manifest.json');
    const text = readFileSync(path, 'utf8');
    const cases: [from: string | RegExp, to: string, message: RegExp][] = [
      ['"version": 2', '"version": 3', /packed in version 3 of the format, this build reads 1 and 2/],
      ['"version": 2', '"version": 1', /dense\.file is "model\.safetensors", not "model\.gguf"/],
      ['"file": "config.json"', '"file": "other.json"', /texts\[0\]\.file is "other\.json", not/],
      ['"type": "AFFINE4_G32"', '"type": "AFFINE4_G64"', /cols is 32, not a multiple|byteLength is/],
      ['"type": "AFFINE4_G32"', '"type": "AFFINE7_G32"', /is "AFFINE7_G32", which is no type/],
    ];
    for (const [from, to, message] of cases) {
      writeFileSync(path, text.replace(from, to));
      expect(() => openModel(out)).toThrow(message);
    }
    writeFileSync(path, text);
    rmSync(join(out, 'tokenizer.json'));
    expect(() => openModel(out)).toThrow(/tokenizer\.json: a file of a packed model is missing/);
  });
});

describe('the same model in both formats', () => {
  it('as Hugging Face publishes it: the float64 reference of the GGUF', async () => {
    const checkpoint = join(folder, 'hf');
    writeCheckpoint(NANO, checkpoint, { dialect: 'hf', shards: 3 });
    const logits = await logitsOf(checkpoint);
    expect(relativeRms(logits, readFloats(fixture('golden/nano-F32/ref.f32')))).toBeLessThan(PRECISE);
  });

  it('as MLX before quantising, in one file', async () => {
    const checkpoint = join(folder, 'mlx-float');
    writeCheckpoint(NANO, checkpoint, { dialect: 'mlx' });
    const logits = await logitsOf(checkpoint);
    expect(relativeRms(logits, readFloats(fixture('golden/nano-F32/ref.f32')))).toBeLessThan(PRECISE);
  });

  it('in bfloat16, which moves the logits by what it rounds', async () => {
    const checkpoint = join(folder, 'hf-bf16');
    writeCheckpoint(NANO, checkpoint, { dialect: 'hf', dtype: 'BF16' });
    const logits = await logitsOf(checkpoint);
    const distance = relativeRms(logits, readFloats(fixture('golden/nano-F32/ref.f32')));
    expect(distance).toBeGreaterThan(PRECISE);
    expect(distance).toBeLessThan(0.03);
  });

  it('as MLX with 2, 3, 4, 5, 6 and 8 bits in groups of 32, 64 and 128, module by module', async () => {
    const gguf = join(folder, 'tiny.gguf');
    await makeModel({ preset: 'tiny', mix: 'F32', experts: 4, expertsPerToken: 2, vocab: 300 }, gguf);
    const checkpoint = join(folder, 'mlx-mixture');
    const back = writeCheckpoint(gguf, checkpoint, { dialect: 'mlx', quantize: mixture, shards: 2 });
    writeFileSync(join(folder, 'tiny-back.gguf'), back);
    const tokens = [1, 5, 9, 200, 3, 3, 7, 250, 12, 40];
    const expected = await logitsOf(join(folder, 'tiny-back.gguf'), {}, tokens);
    expect(relativeRms(await logitsOf(checkpoint, {}, tokens), expected)).toBeLessThan(PRECISE);
    // The weights did change, or this would say nothing.
    expect(relativeRms(await logitsOf(gguf, {}, tokens), expected)).toBeGreaterThan(0.05);
  });
});

describe('mixed sources', () => {
  let pure: { readonly gguf: Float32Array; readonly mlx: Float32Array };
  beforeAll(async () => {
    pure = { gguf: await logitsOf(NANO), mlx: await logitsOf(NANO_MLX) };
  });

  it('all parts of the other model, one after the other, become it', async () => {
    const { gguf, mlx } = pure;
    const other = { experts: NANO_MLX, embedding: NANO_MLX, lmHead: NANO_MLX };
    const distances: number[] = [];
    for (const names of [[], ['experts'], ['experts', 'embedding'], ['experts', 'embedding', 'lmHead']]) {
      const parts = Object.fromEntries(Object.entries(other).filter(([name]) => names.includes(name)));
      const logits = await logitsOf(NANO, parts);
      distances.push(relativeRms(logits, gguf));
      // What is left of the GGUF is its attention, DeltaNet and shared experts: neither pure model.
      if (names.length > 0) expect(relativeRms(logits, mlx)).toBeGreaterThan(0.01);
    }
    expect(distances[0]).toBe(0);
    expect(new Set(distances).size).toBe(4);
    for (const distance of distances.slice(1)) expect(distance).toBeGreaterThan(0.01);
  });

  it('equal weights from another format give the pure model, whatever the order of heads', async () => {
    const checkpoint = join(folder, 'mix-hf');
    writeCheckpoint(NANO, checkpoint, { dialect: 'hf', shards: 2 });
    const packed = join(folder, 'mix-packed');
    await pack(NANO, packed);
    const from = (path: string) => ({ experts: path, embedding: path, lmHead: path });
    for (const [base, parts] of [
      [NANO, from(checkpoint)],
      [checkpoint, from(NANO)],
      [checkpoint, { experts: packed }],
    ] as const) {
      expect(relativeRms(await logitsOf(base, parts), pure.gguf)).toBeLessThan(PRECISE);
    }
    // The same bits when nothing else differs.
    const same = await logitsOf(NANO, { experts: packed });
    expect(Buffer.compare(Buffer.from(same.buffer), Buffer.from(pure.gguf.buffer))).toBe(0);
  });

  it('the command line takes the same parts', async () => {
    const parts = ['--experts', NANO_MLX, '--embedding', NANO_MLX, '--lm-head', NANO_MLX];
    const out = join(folder, 'cli.f32');
    const list = ids.slice(0, 9).join(',');
    const run = await runCli([
      'logits',
      '-m',
      NANO,
      ...parts,
      '--precision',
      'exact',
      '-q',
      '--readers',
      '4',
      '--ids',
      list,
      '--out',
      out,
    ]);
    expect([run.code, run.stderr]).toEqual([0, '']);
    const expected = await logitsOf(
      NANO,
      { experts: NANO_MLX, embedding: NANO_MLX, lmHead: NANO_MLX },
      ids.slice(0, 9),
    );
    expect(readFileSync(out).equals(Buffer.from(expected.buffer))).toBe(true);
  });

  it('another model is refused with both names and what differs', async () => {
    const refusal = logitsOf(NANO, { experts: BUILT_IN_MODEL });
    await expect(refusal).rejects.toMatchObject({ code: 'MODEL_INVALID' });
    await expect(refusal).rejects.toThrow(
      /tldr-UD_Q3_K_XL\.gguf has layers 8, .*nano-F32\/model\.gguf has 4/,
    );
    const checkpoint = join(folder, 'other-theta');
    writeCheckpoint(NANO, checkpoint, {
      dialect: 'hf',
      config: (config) => {
        config.text_config.rope_parameters.rope_theta = 77;
      },
    });
    await expect(logitsOf(NANO, { lmHead: checkpoint })).rejects.toThrow(/has ropeTheta 77, .* has/);
  });
});

describe('the trained model as MLX, against llama.cpp on the dequantised weights', {
  timeout: 240_000,
}, () => {
  const golden = tldrGolden();
  const tool = shared('tools/mlx_quantize.py');
  const reason = missingShared('model/golden/mlx.json') ?? toolReason();
  const expected =
    reason === undefined ? readJson<Record<string, Golden>>(shared('model/golden/mlx.json')) : {};

  interface Golden {
    readonly logits_file: string;
    readonly val_ppl: number;
    readonly wikitext2_ppl: number;
  }

  function toolReason(): string | undefined {
    if (!existsSync(tool)) return 'needs ../shared/tools/mlx_quantize.py, which does not come with a clone';
    try {
      execFileSync('python3', ['-c', 'import numpy'], { stdio: 'ignore' });
      return undefined;
    } catch {
      return 'needs python3 with numpy to make the checkpoint';
    }
  }

  for (const [name, rest] of [
    ['4bit', []],
    ['2bit', ['--expert-bits', '2']],
  ] as const) {
    it(`${name}: logits of a chat and the perplexity of two texts`, async (context) => {
      if (reason !== undefined) return context.skip(reason);
      const out = join(folder, `tldr-${name}`);
      const env = { ...process.env, PYTHONDONTWRITEBYTECODE: '1' };
      const made = [tool, shared('model/tldr-Q8_0.gguf'), '4', out, ...rest];
      execFileSync('python3', made, { env, stdio: 'ignore' });
      const { logits_file, val_ppl, wikitext2_ppl } = expected[name]!;
      await withEngine({ model: out }, async (engine) => {
        const { logits } = await score(engine, golden.chat.ids);
        expect(relativeRms(logits, readFloats(shared(`model/golden/${logits_file}`)))).toBeLessThan(PRECISE);
        for (const [text, perplexity] of [
          [golden.val.ids, val_ppl],
          [golden.wikitext2.ids, wikitext2_ppl],
        ] as const) {
          let sum = 0;
          await engine.logits(text.slice(0, -1), (row, position) => {
            sum += negativeLogLikelihood(row, text[position + 1]!);
          });
          expect(Math.abs(Math.exp(sum / (text.length - 1)) / perplexity - 1)).toBeLessThan(1e-5);
        }
      });
    });
  }
});
