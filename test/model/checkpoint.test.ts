/** Checkpoint folders: what opens, by which path, as what; and what is refused, by name. */
import { cpSync, readFileSync, renameSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { MoestreamError } from '../../dist/errors.js';
import { openModel, openModelText } from '../../dist/model/model.js';
import {
  type Config,
  type Quantization,
  type StoredSpec,
  safetensorsOf,
  writeCheckpoint,
} from '../support/checkpoint-builder.js';
import { runCli } from '../support/cli.js';
import { temporaryFolder } from '../support/folder.js';
import { fixture } from '../support/golden.js';

const NANO = fixture('golden/nano-F32/model.gguf');
const MLX = fixture('mlx/nano-4bit');
const SHARDS = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'] as const;
const INDEX = 'model.safetensors.index.json';
const folder = temporaryFolder();
let made = 0;

/** A copy of the fixture to damage. */
function copy(): string {
  const path = join(folder, `copy-${made++}`);
  cpSync(MLX, path, { recursive: true });
  return path;
}

function edit(path: string, change: (value: Config) => void): void {
  const value = JSON.parse(readFileSync(path, 'utf8')) as Config;
  change(value);
  writeFileSync(path, JSON.stringify(value));
}

function withConfig(change: (config: Config) => void): string {
  const path = copy();
  edit(join(path, 'config.json'), change);
  return path;
}

function failureOf(path: string): MoestreamError {
  try {
    openModel(path);
  } catch (error) {
    return error as MoestreamError;
  }
  throw new Error('the model opens');
}

describe('a checkpoint', () => {
  it('opens by its folder, its configuration, its index and any shard', () => {
    const expected = openModel(MLX);
    expect(expected.files.map(({ path }) => path)).toEqual(SHARDS.map((name) => join(MLX, name)));
    for (const name of ['config.json', INDEX, ...SHARDS]) {
      const { files, tensors } = openModel(join(MLX, name));
      expect({ files, tensors }).toEqual({ files: expected.files, tensors: expected.tensors });
    }
  });

  it('has the shape of the GGUF that it was made from, but for the order of heads', () => {
    const gguf = openModel(NANO).hyperparameters;
    const { name, ...mlx } = openModel(MLX).hyperparameters;
    expect(name).toBe('nano-4bit');
    expect(mlx.tiledValueHeads).toBe(false);
    expect({ ...mlx, rmsEpsilon: Math.fround(mlx.rmsEpsilon) }).toEqual({
      ...gguf,
      name: undefined,
      tiledValueHeads: false,
      sampling: { temperature: undefined, topK: undefined, topP: undefined },
    });
  });

  it('has experts of nine spans, with the sizes that its types say', () => {
    const { experts, dense } = openModel(MLX).tensors;
    for (const { gate, up, down } of experts) {
      for (const matrix of [gate, up, down]) {
        expect(matrix.type.name).toBe('AFFINE4_G32');
        const values = matrix.rows * matrix.cols;
        expect([matrix.byteLength, matrix.scales!.byteLength, matrix.biases!.byteLength]).toEqual([
          values / 2,
          values / 16,
          values / 16,
        ]);
      }
    }
    const router = dense.find(({ name }) => name === 'ffn_gate_inp.weight')!;
    expect(router.type.name).toBe('AFFINE8_G32');
    expect(dense.filter(({ change }) => change !== undefined).map(({ name }) => name)).toEqual(
      Array(3).fill('ssm_a'),
    );
  });

  it('reads as one file without an index, and with the defaults of generation_config.json', () => {
    const path = join(folder, 'single');
    writeCheckpoint(NANO, path, { dialect: 'hf' });
    writeFileSync(
      join(path, 'generation_config.json'),
      JSON.stringify({ do_sample: true, temperature: 0.6, top_k: 20, top_p: 0.95, eos_token_id: [3, 5] }),
    );
    const model = openModel(path);
    expect(model.sampling).toEqual({ temperature: 0.6, topK: 20, topP: 0.95 });
    expect([...model.tokenizer.eogIds]).toEqual(expect.arrayContaining([3, 5]));
    expect(model.files).toHaveLength(1);
    // Under another name it is still the only one.
    renameSync(join(path, 'model.safetensors'), join(path, 'weights.safetensors'));
    expect(openModel(path).tensors.dense).toEqual(model.tensors.dense);
    edit(join(path, 'generation_config.json'), (config) => {
      config.do_sample = false;
    });
    expect(openModel(path).sampling.temperature).toBe(0);
    const plusOne = openModel(path).tensors.dense.filter(({ change }) => change === 'plus one');
    // Two per layer, query and key of the one with attention, the last one; not those of DeltaNet.
    expect(plusOne).toHaveLength(4 * 2 + 2 + 1);
  });

  it('is shown by inspect, plan and tokenize', async () => {
    const shown = await runCli(['inspect', MLX, '--json']);
    expect(JSON.parse(shown.stdout)).toMatchObject({
      architecture: 'qwen35moe',
      expertKinds: [{ layers: 4, types: 'AFFINE4_G32 / AFFINE4_G32 / AFFINE4_G32', bytes: 3840 }],
      streamedBytes: 4 * 8 * 3840,
    });
    const plan = await runCli(['plan', MLX, '--memory', '100M', '--experts', NANO, '--json']);
    expect(JSON.parse(plan.stdout)).toMatchObject({ expertBytesPerToken: 4 * 2 * 3 * 64 * 32 * 4 });
    const tokens = await runCli(['tokenize', '-m', MLX, '--ids', 'Hello world']);
    expect(tokens.stdout).toBe((await runCli(['tokenize', '-m', NANO, '--ids', 'Hello world'])).stdout);
  });
});

describe('the words of a checkpoint', () => {
  const gguf = openModelText(NANO);
  const TEXTS = [
    'Hello, world! 12345',
    '  two  blanks\r\n\n',
    "it's <|im_start|>user\nnaïve 😀 e\u0301<|im_end|>",
    '日本語\u3000\u00a0x',
    '',
  ];

  it('are those of the GGUF: ids, bytes, ends and template', () => {
    const mlx = openModelText(MLX);
    for (const text of TEXTS) {
      for (const parseSpecial of [true, false]) {
        expect(mlx.tokenizer.encode(text, { parseSpecial })).toEqual(
          gguf.tokenizer.encode(text, { parseSpecial }),
        );
      }
    }
    for (let id = 0; id < 300; id++) {
      expect(Buffer.from(mlx.tokenizer.tokenBytes(id))).toEqual(Buffer.from(gguf.tokenizer.tokenBytes(id)));
    }
    expect(mlx.tokenizer.eogIds).toEqual(gguf.tokenizer.eogIds);
    const messages = [{ role: 'user', content: 'x' }];
    expect(mlx.renderChat(messages)).toBe(gguf.renderChat(messages));
  });

  it('need no weights', () => {
    const path = copy();
    for (const name of [...SHARDS, INDEX]) rmSync(join(path, name));
    expect(openModelText(path).tokenizer.encode('ab', { parseSpecial: false })).toEqual(
      gguf.tokenizer.encode('ab', { parseSpecial: false }),
    );
    expect(failureOf(path)).toMatchObject({ code: 'MODEL_NOT_FOUND' });
  });

  it('are normalised where the file asks for it, and merges may be pairs', () => {
    const path = copy();
    edit(join(path, 'tokenizer.json'), (tokenizer) => {
      tokenizer.normalizer = { type: 'NFC' };
      tokenizer.model.merges = tokenizer.model.merges.map((merge: string) => merge.split(' '));
    });
    const { tokenizer } = openModelText(path);
    const ids = tokenizer.encode('e\u0301', { parseSpecial: false });
    expect(Buffer.concat(ids.map((id) => tokenizer.tokenBytes(id))).toString()).toBe('\u00e9');
  });

  it('take the template from its own file, or the default one of several', () => {
    const path = copy();
    const messages = [{ role: 'user', content: 'x' }];
    edit(join(path, 'tokenizer_config.json'), (config) => {
      config.chat_template = [
        { name: 'tool', template: 'no' },
        { name: 'default', template: 'one of several' },
      ];
    });
    expect(openModelText(path).renderChat(messages)).toBe('one of several');
    writeFileSync(join(path, 'chat_template.jinja'), 'its own {{ messages[0].content }}');
    expect(openModelText(path).renderChat(messages)).toBe('its own x');
  });

  const wrong: readonly (readonly [what: string, change: (tokenizer: Config) => void, message: RegExp])[] = [
    [
      'another kind of model',
      (t) => {
        t.model.type = 'Unigram';
      },
      /tokenizer model "Unigram" is not supported/,
    ],
    [
      'another pattern',
      (t) => {
        t.pre_tokenizer.pretokenizers[0].pattern.Regex = '\\w+';
      },
      /pattern ".*w\+" is not supported/,
    ],
    [
      'another normalizer',
      (t) => {
        t.normalizer = { type: 'Lowercase' };
      },
      /normalizer "Lowercase"/,
    ],
    [
      'a post-processor that adds tokens',
      (t) => {
        t.post_processor = { type: 'TemplateProcessing' };
      },
      /post-processor "TemplateProcessing"/,
    ],
    [
      'merges that are left out',
      (t) => {
        t.model.ignore_merges = true;
      },
      /ignore_merges/,
    ],
    [
      'an id that is none',
      (t) => {
        t.model.vocab.a = -1;
      },
      /token "a" has the id "-1"/,
    ],
    [
      'an id beyond all vocabularies',
      (t) => {
        t.model.vocab.a = 2 ** 30;
      },
      /token "a" has the id "1073741824"/,
    ],
    [
      'two tokens of one id',
      (t) => {
        t.added_tokens[0].id = 1;
      },
      /has the id 1 of/,
    ],
    [
      'a merge of one piece',
      (t) => {
        t.model.merges[3] = ['a'];
      },
      /model\.merges\[3\] is not two pieces/,
    ],
    [
      'a merge of unknown pieces',
      (t) => {
        t.model.merges[3] = 'zzz qqq';
      },
      /"model\.merges\[3\]" joins or makes a piece/,
    ],
    [
      'a byte without a token',
      (t) => {
        delete t.model.vocab['!'];
      },
      /"model\.vocab" has no token for the byte 33/,
    ],
  ];
  it.each(wrong)('%s is refused', (_, change, message) => {
    const path = copy();
    edit(join(path, 'tokenizer.json'), change);
    expect(() => openModelText(path).tokenizer).toThrow(message);
    expect(() => openModelText(path).tokenizer).toThrow(join(path, 'tokenizer.json'));
  });

  it('a tokenizer that is missing, or a pointer to one', () => {
    const path = copy();
    writeFileSync(join(path, 'tokenizer.json'), 'version https://git-lfs.github.com/spec/v1\n');
    expect(() => openModelText(path).tokenizer).toThrow(/Git LFS pointer/);
    rmSync(join(path, 'tokenizer.json'));
    expect(() => openModelText(path).tokenizer).toThrow(/tokenizer\.json: no such file/);
  });
});

describe('downloads that are not what they seem', () => {
  it('a shard that is missing', () => {
    const path = copy();
    rmSync(join(path, SHARDS[1]));
    expect(failureOf(path)).toMatchObject({
      code: 'MODEL_NOT_FOUND',
      message: `${join(path, SHARDS[1])}: part 2 of 2 is missing`,
    });
  });

  it('a shard that is cut off, and one that is cut off in its header', () => {
    const path = copy();
    const shard = join(path, SHARDS[1]);
    truncateSync(shard, 100_000);
    expect(failureOf(path).message).toMatch(
      /00002-of-00002\.safetensors: the file is cut off: tensor ".*" ends at byte \d+, the file has 100000/,
    );
    truncateSync(shard, 1000);
    expect(failureOf(path).message).toMatch(/ends inside the header/);
  });

  it('a Git LFS pointer in place of a shard, or of the configuration', () => {
    const path = copy();
    const pointer = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n';
    writeFileSync(join(path, SHARDS[0]), pointer);
    expect(failureOf(path)).toMatchObject({
      code: 'MODEL_INVALID',
      message: expect.stringMatching(/00001-of-00002.*Git LFS pointer/),
    });
    writeFileSync(join(path, 'config.json'), pointer);
    expect(failureOf(path).message).toMatch(/config\.json: this is a Git LFS pointer/);
  });

  it('an index that names what is not there, or leads out of the folder', () => {
    const path = copy();
    const index = join(path, INDEX);
    edit(index, ({ weight_map }) => {
      weight_map['language_model.extra'] = SHARDS[0];
    });
    expect(failureOf(path).message).toMatch(/tensor "language_model\.extra" is not in model-00001-of-00002/);
    edit(index, ({ weight_map }) => {
      weight_map['language_model.extra'] = '../model.safetensors';
    });
    expect(failureOf(path).message).toMatch(
      /sends "language_model\.extra" to "\.\.\/model\.safetensors", no plain file name/,
    );
    writeFileSync(index, '{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}');
    expect(failureOf(path).message).toMatch(/has "a" twice/);
  });

  it('a folder that is none of the three, and one with shards but no index', () => {
    expect(failureOf(temporaryFolder()).message).toMatch(
      /a folder without manifest\.json, not a packed model/,
    );
    const path = copy();
    rmSync(join(path, INDEX));
    expect(failureOf(path)).toMatchObject({
      code: 'MODEL_NOT_FOUND',
      message: expect.stringMatching(/2 \.safetensors files and no model\.safetensors\.index\.json/),
    });
    rmSync(join(path, 'config.json'));
    expect(failureOf(join(path, SHARDS[0])).message).toMatch(/without config\.json, not a checkpoint/);
  });

  it('a tensor in both shards', () => {
    const path = copy();
    cpSync(join(path, SHARDS[0]), join(path, SHARDS[1]));
    rmSync(join(path, INDEX));
    writeFileSync(
      join(path, INDEX),
      JSON.stringify({
        weight_map: {
          'language_model.lm_head.weight': SHARDS[0],
          'language_model.lm_head.scales': SHARDS[1],
        },
      }),
    );
    expect(failureOf(path).message).toMatch(/tensor ".*" occurs in two files/);
  });
});

describe('configurations that cannot be computed with', () => {
  const text = (change: (text: Config) => void) => (config: Config) => change(config.text_config);
  const gate = 'language_model.model.layers.0.mlp.gate';
  const cases: readonly (readonly [what: string, change: (config: Config) => void, message: RegExp])[] = [
    [
      'another model',
      (c) => {
        c.model_type = 'llama';
        c.text_config.model_type = 'llama';
      },
      /is a "llama" model; .* qwen3_5_moe/,
    ],
    [
      'a missing width',
      text((t) => {
        delete t.hidden_size;
      }),
      /"text_config\.hidden_size" is missing/,
    ],
    [
      'a width that is a text',
      text((t) => {
        t.hidden_size = '64';
      }),
      /"text_config\.hidden_size" is not a number/,
    ],
    [
      'half a layer',
      text((t) => {
        t.num_hidden_layers = 3.5;
      }),
      /"text_config\.num_hidden_layers" is 3\.5, not an integer/,
    ],
    [
      'no experts',
      text((t) => {
        t.num_experts = 0;
      }),
      /"text_config\.num_experts" is 0, it must be between 1/,
    ],
    [
      'other RoPE',
      text((t) => {
        t.rope_parameters.rope_type = 'yarn';
      }),
      /RoPE scaling "yarn" is not supported/,
    ],
    [
      'no rotary share',
      text((t) => {
        delete t.rope_parameters.partial_rotary_factor;
      }),
      /partial_rotary_factor" is missing/,
    ],
    [
      'another activation',
      text((t) => {
        t.hidden_act = 'gelu';
      }),
      /hidden_act is "gelu", which is not supported/,
    ],
    [
      'a router that does not normalise',
      text((t) => {
        t.norm_topk_prob = false;
      }),
      /norm_topk_prob is "false"/,
    ],
    [
      'biases',
      text((t) => {
        t.attention_bias = true;
      }),
      /attention_bias is "true"/,
    ],
    [
      'layers without experts',
      text((t) => {
        t.mlp_only_layers = [1];
      }),
      /mlp_only_layers/,
    ],
    [
      'a kind of layer',
      text((t) => {
        t.layer_types = ['sliding_attention'];
      }),
      /layer_types has "sliding_attention"/,
    ],
    [
      'value heads of another width',
      text((t) => {
        t.linear_value_head_dim = 8;
      }),
      /linear_value_head_dim" is \d+, not/,
    ],
    [
      'another quantisation',
      (c) => {
        c.quantization.mode = 'mxfp4';
      },
      /mode "mxfp4", which is not supported/,
    ],
    [
      'a method of another maker',
      (c) => {
        c.quantization.quant_method = 'awq';
      },
      /quant_method is "awq"/,
    ],
    [
      'bits that nobody packs',
      (c) => {
        c.quantization.bits = 7;
      },
      /has 7 bits in groups of 32/,
    ],
    [
      'other bits than the codes',
      (c) => {
        c.quantization.bits = 8;
      },
      /scales" has shape .* with 8 bits in groups of 32 do not have/,
    ],
    [
      'other bits than one module',
      (c) => {
        c.quantization[gate].bits = 4;
      },
      /layers\.0\.mlp\.gate\.scales" has shape/,
    ],
    [
      'no quantisation, and codes',
      (c) => {
        delete c.quantization;
        delete c.quantization_config;
      },
      /quantization does not say bits and group_size/,
    ],
    [
      'another width than the tensors',
      text((t) => {
        t.moe_intermediate_size = 64;
      }),
      /tensor "language_model\.model\.layers\.0\.mlp\.switch_mlp\.down_proj\.weight" has shape 32 x 64 x 8, expected 64 x 64 x 8/,
    ],
  ];
  it.each(cases)('%s', (_, change, message) => {
    const path = withConfig(change);
    const error = failureOf(path);
    expect(error.message).toMatch(message);
    expect(error.message).toContain(path);
    expect(['MODEL_INVALID', 'MODEL_UNSUPPORTED']).toContain(error.code);
  });
});

describe('tensors that do not make up a model', () => {
  /** A checkpoint whose tensors were changed on the way. */
  function withTensors(
    change: (tensors: StoredSpec[]) => StoredSpec[],
    quantize?: (module: string) => Quantization | undefined,
  ): string {
    const path = join(folder, `tensors-${made++}`);
    writeCheckpoint(NANO, path, { dialect: 'mlx', ...(quantize && { quantize }) });
    const file = join(path, 'model.safetensors');
    const bytes = readFileSync(file);
    const headerBytes = Number(bytes.readBigUInt64LE());
    const header = JSON.parse(bytes.toString('utf8', 8, 8 + headerBytes)) as Config;
    const tensors = Object.entries(header).map(
      ([
        name,
        {
          dtype,
          shape,
          data_offsets: [begin, end],
        },
      ]) => ({
        name,
        dtype,
        shape,
        data: bytes.subarray(8 + headerBytes + begin, 8 + headerBytes + end),
      }),
    );
    writeFileSync(file, safetensorsOf(change(tensors)));
    return path;
  }
  const half = (t: StoredSpec, change: Partial<StoredSpec>): StoredSpec => ({ ...t, ...change });
  const at = 'language_model.model.layers.0.';
  const rename = (from: string, to: string) => (tensors: StoredSpec[]) =>
    tensors.map((t) => (t.name === from ? half(t, { name: to }) : t));

  const cases: readonly (readonly [
    what: string,
    change: (tensors: StoredSpec[]) => StoredSpec[],
    message: RegExp,
  ])[] = [
    [
      'one that is missing',
      rename(`${at}linear_attn.A_log`, 'other'),
      /tensor "layers\.0\.linear_attn\.A_log" is missing/,
    ],
    [
      'experts one by one',
      rename(`${at}mlp.switch_mlp.up_proj.weight`, `${at}mlp.experts.0.up_proj.weight`),
      /holds one expert by itself/,
    ],
    [
      'a bias',
      (t) => [
        ...t,
        half(t.find(({ name }) => name.endsWith('dt_bias'))!, { name: `${at}self_attn.q_proj.bias` }),
      ],
      /self_attn\.q_proj\.bias" is a bias|q_proj\.bias/,
    ],
    [
      'a convolution of two dimensions',
      (t) =>
        t.map((x) =>
          x.name === `${at}linear_attn.conv1d.weight` ? half(x, { shape: x.shape.slice(0, 2) }) : x,
        ),
      /conv1d\.weight" has shape .*, expected channels x taps x 1/,
    ],
    [
      'convolutions of two makers',
      (t) =>
        t.map((x) =>
          x.name === `${at}linear_attn.conv1d.weight` ? half(x, { shape: [x.shape[0]!, 1, x.shape[1]!] }) : x,
        ),
      /two checkpoints are mixed up/,
    ],
    [
      'a dtype that is not computed with',
      (t) => t.map((x) => (x.name !== `${at}mlp.gate.weight` ? x : half(x, { dtype: 'I32' }))),
      /mlp\.gate\.weight" is of type I32/,
    ],
  ];
  it.each(cases)('%s', (_, change, message) => {
    expect(failureOf(withTensors(change)).message).toMatch(message);
  });

  it('what it has no use for is listed, not refused', () => {
    const extra: StoredSpec = {
      name: 'model.visual.patch',
      dtype: 'I64',
      shape: [1],
      data: new Uint8Array(8),
    };
    // MTP layers come with experts one by one.
    const mtp: StoredSpec = { ...extra, name: 'mtp.layers.0.mlp.experts.3.up_proj.weight' };
    const { unused } = openModel(withTensors((t) => [...t, extra, mtp])).tensors;
    expect(unused).toEqual([extra.name, mtp.name]);
  });

  const quantize = (module: string): Quantization | undefined =>
    module.endsWith('mlp.gate') ? { bits: 8, group: 64 } : undefined;
  it.each([
    [
      'scales without biases',
      (t: StoredSpec[]) => t.filter(({ name }) => name !== `${at}mlp.gate.biases`),
      /has scales and no biases/,
    ],
    [
      'scales without a weight',
      (t: StoredSpec[]) => t.filter(({ name }) => name !== `${at}mlp.gate.weight`),
      /has no weight beside it/,
    ],
    [
      'scales of float16',
      (t: StoredSpec[]) => t.map((x) => (x.name === `${at}mlp.gate.scales` ? half(x, { dtype: 'F16' }) : x)),
      /has dtype F16, only BF16/,
    ],
    [
      'codes of another dtype',
      (t: StoredSpec[]) => t.map((x) => (x.name === `${at}mlp.gate.weight` ? half(x, { dtype: 'I32' }) : x)),
      /codes of dtype I32/,
    ],
  ] as const)('%s', (_, change, message) => {
    expect(failureOf(withTensors(change, quantize)).message).toMatch(message);
  });
});
