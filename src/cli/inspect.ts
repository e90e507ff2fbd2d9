/** `moestream inspect`: what a model file is, and which of its bytes stay in memory and which stream. */
import type { Command } from 'commander';
import { type Model, openModel } from '../model/model.ts';
import { bytesOf } from '../model/places.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { MODEL_ARGUMENT } from './arguments.ts';
import { print, table } from './output.ts';

interface InspectFlags {
  readonly json?: boolean;
}

export function addInspect(program: Command): void {
  program
    .command('inspect')
    .description('show what a model file holds')
    .argument('<model>', MODEL_ARGUMENT)
    .option('--json', 'as JSON')
    .action(inspect);
}

interface TypeTotal {
  readonly type: string;
  tensors: number;
  bytes: number;
}

interface Inspection {
  readonly name: string | undefined;
  readonly architecture: string;
  readonly files: readonly { path: string; bytes: number }[];
  readonly layers: number;
  readonly attentionLayers: number;
  readonly hidden: number;
  readonly vocabulary: number;
  readonly contextLength: number;
  readonly experts: number;
  readonly expertsPerToken: number;
  /** Per distinct expert: how many layers have it, its types and its bytes. */
  readonly expertKinds: readonly { layers: number; types: string; bytes: number }[];
  readonly types: readonly TypeTotal[];
  readonly residentBytes: number;
  readonly streamedBytes: number;
  /** Expert bytes that one token touches. */
  readonly streamedBytesPerToken: number;
}

function inspectionOf(model: Model): Inspection {
  const { source, files, packed, hyperparameters, tensors } = model;
  const types = new Map<string, TypeTotal>();
  const add = (type: string, bytes: number): void => {
    const total = types.get(type) ?? { type, tensors: 0, bytes: 0 };
    total.tensors++;
    total.bytes += bytes;
    types.set(type, total);
  };
  for (const tensor of source.tensors.values()) add(tensor.type.name, bytesOf(tensor));
  const kinds = new Map<string, { layers: number; types: string; bytes: number }>();
  let bytesPerToken = 0;
  for (const { gate, up, down } of tensors.experts) {
    if (packed !== undefined) {
      for (const span of [gate, up, down]) add(span.type.name, bytesOf(span) * hyperparameters.experts);
    }
    const names = [gate, up, down].map((span) => span.type.name).join(' / ');
    const bytes = bytesOf(gate) + bytesOf(up) + bytesOf(down);
    const kind = kinds.get(names) ?? { layers: 0, types: names, bytes };
    kind.layers++;
    kinds.set(names, kind);
    bytesPerToken += bytes * hyperparameters.expertsPerToken;
  }
  const expertKinds = [...kinds.values()];
  return {
    name: hyperparameters.name,
    architecture: hyperparameters.architecture,
    files: files.map((file) => ({ path: file.path, bytes: file.sizeBytes })),
    layers: hyperparameters.layers,
    attentionLayers: hyperparameters.attentionLayers.reduce((sum, isAttention) => sum + isAttention, 0),
    hidden: hyperparameters.hidden,
    vocabulary: hyperparameters.vocabulary,
    contextLength: hyperparameters.contextLength,
    experts: hyperparameters.experts,
    expertsPerToken: hyperparameters.expertsPerToken,
    expertKinds,
    types: [...types.values()].sort((a, b) => b.bytes - a.bytes),
    residentBytes: tensors.dense.reduce((sum, tensor) => sum + bytesOf(tensor), 0),
    streamedBytes: expertKinds.reduce(
      (sum, kind) => sum + kind.bytes * kind.layers * hyperparameters.experts,
      0,
    ),
    streamedBytesPerToken: bytesPerToken,
  };
}

async function inspect(path: string, flags: InspectFlags): Promise<void> {
  const found = inspectionOf(openModel(path));
  if (flags.json === true) return print(`${JSON.stringify(found, undefined, 2)}\n`);
  await print(
    table([
      ['name', found.name ?? '(none)'],
      ['architecture', found.architecture],
      ['layers', `${found.layers}, of which ${found.attentionLayers} full attention`],
      ['hidden', String(found.hidden)],
      ['vocabulary', String(found.vocabulary)],
      ['context', `${found.contextLength} positions`],
      ['experts', `${found.experts} per layer, ${found.expertsPerToken} per token`],
      ['resident', formatBytes(found.residentBytes)],
      [
        'streamed',
        `${formatBytes(found.streamedBytes)}, ${formatBytes(found.streamedBytesPerToken)} per token`,
      ],
      ...found.files.map((file) => ['file', `${file.path} (${formatBytes(file.bytes)})`]),
    ]),
  );
  await print('\nexpert (gate / up / down)\n');
  await print(
    table(found.expertKinds.map((kind) => [kind.types, `${kind.bytes} bytes`, `${kind.layers} layers`])),
  );
  await print('\ntype    tensors\n');
  await print(table(found.types.map((each) => [each.type, each.tensors, formatBytes(each.bytes)])));
}
