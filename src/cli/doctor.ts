/**
 * `moestream doctor`: what this machine is, whether it computes rightly, and what moestream would choose on it.
 *
 * The one thing to ask of somebody whose machine we do not have: every Metal kernel against the CPU on random data, then
 * the first tokens of the built-in model. Exit code 0 when all of it agrees.
 */
import { existsSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { fileURLToPath } from 'node:url';
import { type Command, Option } from 'commander';
import { deviceOf } from '../disk/device.ts';
import { bestPoint, storedMeasurement } from '../disk/store.ts';
import { open } from '../engine/engine.ts';
import { BACKEND_CHOICES, type BackendChoice } from '../engine/options.ts';
import { MoestreamError } from '../errors.ts';
import { type BackendName, backendError, loadCpu, loadIo, loadMetal, type MetalAddon } from '../native.ts';
import { defaultBudget } from '../pipeline/budget.ts';
import { formatBytes } from '../pipeline/memory.ts';
import { allMetalChecks, type Check } from '../selftest/metal-checks.ts';
import { print, say } from './output.ts';

/** Lines are short enough for a terminal of 60 columns, but for words of the system's. */
const LABEL_WIDTH = 9;
const CHECK_WIDTH = 36;

const BUILT_IN_MODEL = fileURLToPath(new URL('../../models/tldr-UD_Q3_K_XL.gguf', import.meta.url));
const PROMPT = 'tar';
const TOKENS = 12;
/** What the built-in model answers, in precision exact at temperature 0. */
const EXPECTED = '# tar\n\nArchiving utility.';

interface DoctorFlags {
  readonly backend?: BackendChoice;
}

export function addDoctor(program: Command, version: string): void {
  program
    .command('doctor')
    .description('check that this machine computes rightly, and say what would be chosen')
    .addOption(
      new Option('--backend <name>', 'what to check (default auto: Metal too, where it is)').choices(
        BACKEND_CHOICES,
      ),
    )
    .action((flags: DoctorFlags) => doctor(flags.backend ?? 'auto', version));
}

function line(label: string, text: string): Promise<void> {
  return print(`${label.padEnd(LABEL_WIDTH)}${text}\n`);
}

const messageOf = (cause: unknown): string => {
  const error = backendError(cause);
  return error instanceof Error ? error.message : String(error);
};

async function describeMachine(version: string): Promise<void> {
  const budget = defaultBudget();
  const [processor] = cpus();
  await line(
    'version',
    `${version}, Node ${process.version}, ${process.platform} ${process.arch} ${release().split('-')[0]}`,
  );
  await line('cpu', `${processor?.model.trim() || 'unknown'}`);
  await line('', `${cpus().length} cores, kernels for ${loadCpu().instructionSets()[0]}`);
  await line('memory', `${formatBytes(totalmem())}, ${formatBytes(budget.bytes)} would be used`);
  await line('pages', `${loadIo().pageBytes()} bytes`);
  const device = deviceOf(BUILT_IN_MODEL);
  const stored = storedMeasurement(device, (sentence) => say(`moestream: ${sentence}`));
  const best = stored && bestPoint(stored.points);
  const speed =
    best === undefined ? 'not measured (diskbench)' : `${(best.bytesPerSecond / 1e9).toFixed(2)} GB/s`;
  await line('disk', `${device}, ${speed}`);
}

async function describeMetal(metal: MetalAddon): Promise<void> {
  const device = metal.device();
  await line('metal', device.name);
  await line(
    '',
    `${device.unifiedMemory ? 'unified' : 'separate'} memory, residency sets: ${yes(device.residencySets)}`,
  );
  await line('', `longest buffer ${formatBytes(device.maxBufferBytes)}`);
  await line('', `working set ${formatBytes(device.workingSetBytes)}`);
}

const yes = (value: boolean): string => (value ? 'yes' : 'no');

/** The add-on, or why there is none. */
function findMetal(choice: BackendChoice): MetalAddon | string {
  if (choice === 'cpu') return 'not asked for';
  try {
    const metal = loadMetal();
    metal.device();
    return metal;
  } catch (cause) {
    return messageOf(cause);
  }
}

async function report(check: Check): Promise<boolean> {
  const passed = check.failure === undefined;
  const number = check.error === undefined ? '' : check.error.toExponential(1);
  await print(
    `${(passed ? 'ok' : 'FAILED').padEnd(LABEL_WIDTH)}${check.name.padEnd(CHECK_WIDTH)} ${number}`.trimEnd(),
  );
  await print(passed ? '\n' : `\n${''.padEnd(LABEL_WIDTH)}${check.failure}\n`);
  return passed;
}

/** The first words of the built-in model's answer, or why there are none. */
async function firstWords(backend: BackendName): Promise<Check> {
  const name = `built-in model on ${backend === 'cpu' ? 'the CPU' : 'Metal'}`;
  try {
    const engine = await open({
      model: BUILT_IN_MODEL,
      backend,
      precision: 'exact',
      contextLength: 64,
      chunk: 64,
    });
    let text = '';
    try {
      for await (const piece of engine.generate(PROMPT, { temperature: 0, maxTokens: TOKENS }))
        text += piece.text;
    } finally {
      await engine.close();
    }
    const failure = text.startsWith(EXPECTED) ? undefined : `it says ${JSON.stringify(text)}`;
    return { name, error: undefined, failure };
  } catch (cause) {
    return { name, error: undefined, failure: messageOf(cause) };
  }
}

async function checkMetal(metal: MetalAddon): Promise<boolean> {
  let passed = true;
  for (const check of allMetalChecks(loadCpu(), metal)) passed = (await report(check)) && passed;
  return (await report(await firstWords('metal'))) && passed;
}

async function doctor(choice: BackendChoice, version: string): Promise<void> {
  if (!existsSync(BUILT_IN_MODEL)) {
    throw new MoestreamError('MODEL_NOT_FOUND', `${BUILT_IN_MODEL} is missing`, { hint: 'Install again.' });
  }
  await describeMachine(version);
  const metal = findMetal(choice);
  if (typeof metal === 'string') await line('metal', metal);
  else await describeMetal(metal);
  await print('\n');
  const cpuPassed = await report(await firstWords('cpu'));
  const metalPassed = typeof metal !== 'string' && (await checkMetal(metal));
  const chosen = metalPassed && process.platform === 'darwin' ? 'Metal' : 'the CPU';
  await print(`\nmoestream would compute on ${chosen}\n`);
  if (!cpuPassed) throw new MoestreamError('INTERNAL', 'the CPU computes wrongly here');
  if (typeof metal !== 'string' && !metalPassed)
    throw new MoestreamError('GPU_FAILED', 'the GPU computes wrongly here');
  if (typeof metal === 'string' && choice === 'metal') throw new MoestreamError('GPU_UNAVAILABLE', metal);
}
