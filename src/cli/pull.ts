/** `moestream pull`: fetches a model by name, after showing what it is, what it needs and whether it will run here. */
import { type Command, InvalidArgumentError } from 'commander';
import { MoestreamError } from '../errors.ts';
import { planBeforehand } from '../hub/heads.ts';
import {
  chooseSet,
  type Hub,
  hubEndpoint,
  hubToken,
  listRepository,
  type ModelSet,
  type Repository,
} from '../hub/listing.ts';
import { localModel } from '../hub/local.ts';
import { CONNECTIONS, pull, refuseWithoutRoom, roomFor } from '../hub/pull.ts';
import {
  type ModelName,
  modelPath,
  parseModelName,
  pulledModel,
  repositoryFolder,
} from '../model/model-store.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { integer } from './arguments.ts';
import type { Interruption } from './interrupt.ts';
import { print, say, table } from './output.ts';
import { progressMeter } from './progress.ts';

interface PullFlags {
  readonly revision: string;
  readonly connections: number;
  readonly dryRun?: boolean;
  readonly offline?: boolean;
  readonly quiet?: boolean;
  readonly json?: boolean;
}

const CONNECTIONS_MAX = 64;

export function modelName(text: string): ModelName {
  const name = parseModelName(text);
  if (name === undefined) throw new InvalidArgumentError(`"${text}" is not org/name or org/name:quant.`);
  return name;
}

function connections(text: string): number {
  const count = integer(text);
  if (count < 1 || count > CONNECTIONS_MAX) {
    throw new InvalidArgumentError(`"${text}" is not a number from 1 to ${CONNECTIONS_MAX}.`);
  }
  return count;
}

export function addPull(program: Command, interruption: () => Interruption): void {
  program
    .command('pull')
    .description('fetch a model by name; run again, it goes on where it was')
    .argument('<name>', 'org/name, or org/name:quant such as :Q4_K_M', modelName)
    .option('--revision <name>', 'branch, tag or commit', 'main')
    .option('--connections <n>', 'transfers at once', connections, CONNECTIONS)
    .option('--dry-run', 'show sizes, room and the memory plan; fetch nothing')
    .option('--offline', 'ask no server: say whether the model is here')
    .option('-q, --quiet', 'nothing on stderr but errors')
    .option('--json', 'a summary as JSON on stdout')
    .addHelpText(
      'after',
      '\nEnvironment: HF_TOKEN, HF_ENDPOINT, and MOESTREAM_MODELS for the folder.\nThen -m org/name:quant opens it.',
    )
    .action((name: ModelName, flags: PullFlags) => pullModel(name, flags, interruption()));
}

async function pullModel(name: ModelName, flags: PullFlags, interruption: Interruption): Promise<void> {
  const quiet = flags.quiet === true;
  if (flags.offline === true) return reportLocal(name, flags);
  const notice = (sentence: string): void => {
    if (!quiet) say(`moestream: ${sentence}`);
  };
  const network = { token: hubToken(), signal: interruption.signal, notice };
  const hub: Hub = { endpoint: hubEndpoint(), network };
  const repository = await listRepository(hub, name.repository, flags.revision);
  if (!quiet && repository.sets.length > 1) say(setsText(repository));
  const set = chooseSet(repository, name);
  const room = roomFor(repository.name, set);
  notice(
    `${repository.name}:${set.quant}: ${set.files.length} files, ${formatBytes(room.totalBytes)}` +
      `${room.presentBytes > 0 ? ` (${formatBytes(room.presentBytes)} here)` : ''}, ${formatBytes(room.freeBytes)} free`,
  );
  notice(await planSentence(hub, repository, set));
  if (flags.dryRun === true) {
    if (flags.json === true) await print(`${JSON.stringify({ ...repository, chosen: set.quant, room })}\n`);
    return refuseWithoutRoom(repository.name, room);
  }
  await transfer(hub, repository, set, flags);
}

function setsText({ name, sets }: Repository): string {
  const rows = sets.map(({ quant, files, totalBytes }) => [
    `:${quant}`,
    formatBytes(totalBytes),
    `${files.length} files`,
  ]);
  return `${name}\n${table(rows).trimEnd()}`;
}

/** What the machine makes of it. A model that does not fit may still be wanted: it is said, not refused. */
async function planSentence(hub: Hub, { name, commit }: Repository, set: ModelSet): Promise<string> {
  try {
    const { plan, slabShare } = await planBeforehand(hub, name, commit, set);
    const share = `${Math.round(100 * slabShare)} % of its experts`;
    return `with the ${formatBytes(plan.budgetBytes)} that are free, ${share} stay in memory; it runs from ${formatBytes(plan.smallestBytes)} on`;
  } catch (error) {
    if (!MoestreamError.is(error)) throw error;
    if (error.code === 'PLAN_REFUSED') return `this machine is too small for it: ${error.message}`;
    if (/^MODEL_(INVALID|UNSUPPORTED)$/.test(error.code)) return `no plan: ${error.message}`;
    throw error;
  }
}

async function transfer(hub: Hub, repository: Repository, set: ModelSet, flags: PullFlags): Promise<void> {
  const meter = progressMeter(flags.quiet === true, 'received and verified');
  const began = performance.now();
  try {
    const { name, commit } = repository;
    const model = await pull(hub, name, commit, set, { ...meter, connections: flags.connections });
    meter.clear();
    const seconds = (performance.now() - began) / 1e3;
    const path = modelPath(`${name}:${model.quant}`);
    if (flags.json === true) return await print(`${JSON.stringify({ ...model, path, seconds })}\n`);
    if (flags.quiet !== true) say(`moestream: whole and verified: ${path}`);
  } catch (error) {
    meter.clear();
    if (MoestreamError.is(error) && error.code === 'ABORTED') {
      say('moestream: interrupted; run the same command again to go on');
    }
    throw error;
  }
}

async function reportLocal(name: ModelName, flags: PullFlags): Promise<void> {
  const model = pulledModel(name);
  const { totalBytes, presentBytes } = localModel(model);
  const path = modelPath(`${model.repository}:${model.quant}`);
  if (flags.json === true) return print(`${JSON.stringify({ ...model, path, totalBytes, presentBytes })}\n`);
  if (flags.quiet !== true)
    say(`moestream: ${model.repository}:${model.quant} is here, ${formatBytes(totalBytes)}`);
  await print(`${model.entry === '.' ? repositoryFolder(model.repository) : path}\n`);
}
