/** `moestream ls` and `moestream rm`: the models that were pulled. */
import type { Command } from 'commander';
import { localModel, localModels, removeModel } from '../hub/local.ts';
import { type ModelName, modelsFolder, pulledModel } from '../model/model-store.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { print, say, table } from './output.ts';
import { modelName } from './pull.ts';

interface ListFlags {
  readonly json?: boolean;
}

export function addModels(program: Command): void {
  program
    .command('ls')
    .description('list the models that were pulled')
    .option('--json', 'as JSON')
    .action(list);
  program
    .command('rm')
    .description('delete a pulled model')
    .argument('<name>', 'org/name, or org/name:quant', modelName)
    .action(remove);
}

async function list(flags: ListFlags): Promise<void> {
  const models = localModels((sentence) => say(`moestream: ${sentence}`));
  if (flags.json === true) {
    const all = models.map(({ model, totalBytes, presentBytes }) => ({ ...model, totalBytes, presentBytes }));
    return print(`${JSON.stringify(all, undefined, 1)}\n`);
  }
  if (models.length === 0) return say(`moestream: nothing was pulled into ${modelsFolder()}`);
  const rows = models.map(({ model, totalBytes, presentBytes }) => [
    `${model.repository}:${model.quant}`,
    formatBytes(totalBytes),
    model.complete
      ? model.pulledAt.slice(0, 10)
      : `${Math.floor((100 * presentBytes) / Math.max(1, totalBytes))} %`,
  ]);
  await print(table(rows));
}

function remove(name: ModelName): void {
  const model = pulledModel(name);
  const { totalBytes } = localModel(model);
  const freedBytes = removeModel(model);
  const kept = freedBytes < totalBytes ? ' (the rest was shared or not here)' : '';
  say(`moestream: deleted ${model.repository}:${model.quant}, ${formatBytes(freedBytes)}${kept}`);
}
