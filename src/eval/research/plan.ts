/**
 * A research plan: what is compared with what, by which number, and what an improvement must not cost.
 *
 * Written by people, so every mistake is answered with its line: the schema says what is wrong, the YAML document knows
 * where it stands. JSON is YAML too. Paths are relative to the plan. docs/research.md describes every field.
 */
import { readFileSync, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { isMap, isNode, isPair, isScalar, LineCounter, parseDocument } from 'yaml';
import { z } from 'zod';
import { settingsOf } from '../../engine/options.ts';
import { MoestreamError } from '../../errors.ts';
import { CACHE_MODES } from '../measure-run.ts';
import { SCORES } from '../score.ts';
import { flagOf, SETTING_NAMES, settingsSchema } from '../settings.ts';

const FILE_BYTES_MAX = 1024 ** 2;
const EXPERIMENTS_MAX = 1000;
const PROBLEMS_SHOWN = 5;

const line = z
  .string()
  .min(1)
  .max(200)
  .regex(/^[^\p{Cc}\u2028\u2029]*$/u, 'one line of printable text');
const path = z.string().min(1).max(4096);
const tokens = z.int().min(0).max(1_000_000);
const share = z.number().min(0).max(10);

const VARIABLES = new Set(
  SETTING_NAMES.map((name) => `MOESTREAM_${flagOf(name).slice(2).toUpperCase().replaceAll('-', '_')}`),
);
const environment = z.record(
  z
    .string()
    .regex(/^[A-Za-z_][A-Za-z0-9_]*$/, 'no name of an environment variable')
    .refine((name) => !VARIABLES.has(name), 'a setting: write it under settings'),
  z.union([z.string().max(4096), z.number()]).transform(String),
);

/** What a baseline has and an experiment may change. */
const changes = {
  model: path.optional(),
  settings: settingsSchema.optional(),
  environment: environment.optional(),
  /** A branch, tag or commit of the plan's repository: built in a worktree, and its own engine measured. */
  git: line.regex(/^[^-]/, 'a ref does not begin with a dash').optional(),
};

const planSchema = z.strictObject({
  name: line.optional(),
  baseline: z.strictObject({ ...changes, model: path }),
  run: z
    .strictObject({
      promptTokens: tokens.default(64),
      decodeTokens: tokens.default(64),
      cache: z.enum(CACHE_MODES).default('warm'),
      text: path.optional(),
      timeoutSeconds: z.int().min(1).max(86_400).default(600),
    })
    .prefault({}),
  score: z.enum(SCORES).default('decode'),
  rounds: z.int().min(2).max(100).multipleOf(2).default(6),
  gain: share.default(0.01),
  gates: z
    .strictObject({
      perplexity: z
        .strictObject({
          raise: share.default(0.01),
          tokens: z.int().min(2).max(1_000_000).default(512),
          decode: z.boolean().default(false),
          text: path.optional(),
        })
        .prefault({})
        .nullable(),
      p99: z
        .strictObject({ raise: share.default(0.1) })
        .prefault({})
        .nullable(),
    })
    .prefault({}),
  build: z.array(z.string().min(1).max(4096)).min(1).max(20).default(['npm ci --no-audit --no-fund']),
  buildTimeoutSeconds: z.int().min(1).max(86_400).default(1800),
  experiments: z
    .array(z.strictObject({ name: line, why: line.optional(), ...changes }))
    .min(1)
    .max(EXPERIMENTS_MAX),
});

type Parsed = z.infer<typeof planSchema>;
export type Changes = Pick<Parsed['experiments'][number], keyof typeof changes>;
export type Experiment = Parsed['experiments'][number];

export interface ResearchPlan extends Parsed {
  /** The plan's own file and folder. */
  readonly path: string;
  readonly folder: string;
}

/** Reads a plan. Throws PLAN_INVALID with the line of every mistake, up to a handful. */
export function readPlan(file: string): ResearchPlan {
  let text: string;
  try {
    if (statSync(file).size > FILE_BYTES_MAX) {
      throw new MoestreamError('PLAN_INVALID', `${file} is larger than any plan`);
    }
    text = readFileSync(file, 'utf8');
  } catch (cause) {
    if (MoestreamError.is(cause)) throw cause;
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new MoestreamError('PLAN_INVALID', `the plan cannot be read: ${reason}`, { cause });
  }
  return parsePlan(text, file);
}

interface Problem {
  readonly path: readonly PropertyKey[];
  readonly message: string;
}

/** `file` names the plan in messages and is what its paths are relative to. */
export function parsePlan(text: string, file: string): ResearchPlan {
  const counter = new LineCounter();
  const document = parseDocument(text, { lineCounter: counter, prettyErrors: false });
  const [broken] = document.errors;
  if (broken !== undefined) refuse(file, [`${counter.linePos(broken.pos[0]).line}: ${broken.message}`]);
  const lineOf = (place: readonly PropertyKey[]): number => {
    for (let length = place.length; length >= 0; length--) {
      const node = keyOrNode(document, place.slice(0, length));
      if (node !== undefined) return counter.linePos(node).line;
    }
    return 1;
  };
  const told = (problems: readonly Problem[]): string[] =>
    problems.map(({ path: place, message }) => {
      const where = place.length === 0 ? '' : `${place.map(String).join('.')}: `;
      return `${lineOf(place)}: ${where}${message}`;
    });
  let value: unknown;
  try {
    value = document.toJS({ maxAliasCount: 100 });
  } catch (cause) {
    refuse(file, [`1: ${cause instanceof Error ? cause.message : String(cause)}`]);
  }
  const found = planSchema.safeParse(value);
  if (!found.success) refuse(file, told(found.error.issues.flatMap(problemsOf)));
  const plan = { ...found.data, path: resolve(file), folder: dirname(resolve(file)) };
  const problems = problemsIn(plan);
  if (problems.length > 0) refuse(file, told(problems));
  return plan;
}

/** The offset of a map's key, or of a list's element. */
function keyOrNode(
  document: ReturnType<typeof parseDocument>,
  place: readonly PropertyKey[],
): number | undefined {
  if (place.length === 0) return isNode(document.contents) ? document.contents.range?.[0] : undefined;
  const parent = document.getIn(place.slice(0, -1), true);
  if (isMap(parent)) {
    const pair = parent.items.find(
      (item) => isPair(item) && isScalar(item.key) && String(item.key.value) === String(place.at(-1)),
    );
    if (pair !== undefined && isScalar(pair.key)) return pair.key.range?.[0];
  }
  const node = document.getIn(place, true);
  return isNode(node) ? node.range?.[0] : undefined;
}

function problemsOf(issue: z.core.$ZodIssue): Problem[] {
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map((key) => ({ path: [...issue.path, key], message: 'is no field of a plan' }));
  }
  // What is wrong with a key is told inside of the issue.
  const message = issue.code === 'invalid_key' ? (issue.issues[0]?.message ?? issue.message) : issue.message;
  return [{ path: issue.path, message }];
}

function refuse(file: string, problems: readonly string[]): never {
  const shown = problems.slice(0, PROBLEMS_SHOWN).map((problem) => `${file}:${problem}`);
  const more = problems.length > PROBLEMS_SHOWN ? [`and ${problems.length - PROBLEMS_SHOWN} more`] : [];
  throw new MoestreamError('PLAN_INVALID', [...shown, ...more].join('\n'), {
    hint: 'docs/research.md describes every field.',
  });
}

/** What the schema cannot know: files, ranges that the engine sets, names that collide. */
function problemsIn(plan: ResearchPlan): Problem[] {
  const problems: Problem[] = [];
  const file = (place: readonly PropertyKey[], name: string | undefined): void => {
    if (name === undefined || statSync(resolve(plan.folder, name), { throwIfNoEntry: false }) !== undefined)
      return;
    problems.push({ path: place, message: `there is no ${resolve(plan.folder, name)}` });
  };
  const settings = (place: readonly PropertyKey[], given: Changes['settings']): void => {
    try {
      settingsOf({ model: 'any', memory: 1, ...withoutUndefined(given) });
    } catch (error) {
      if (!MoestreamError.is(error)) throw error;
      problems.push({ path: place, message: error.message });
    }
  };
  file(['baseline', 'model'], plan.baseline.model);
  file(['run', 'text'], plan.run.text);
  file(['gates', 'perplexity', 'text'], plan.gates.perplexity?.text);
  settings(['baseline', 'settings'], plan.baseline.settings);
  const seen = new Map<string, number>();
  plan.experiments.forEach((experiment, index) => {
    const place = ['experiments', index];
    const before = seen.get(experiment.name);
    if (before !== undefined) {
      problems.push({
        path: [...place, 'name'],
        message: `"${experiment.name}" is experiment ${before + 1} already`,
      });
    }
    seen.set(experiment.name, index);
    file([...place, 'model'], experiment.model);
    settings([...place, 'settings'], { ...plan.baseline.settings, ...experiment.settings });
    const { model, settings: changed, environment: variables, git } = experiment;
    if ([model, changed, variables, git].every((each) => each === undefined)) {
      problems.push({ path: place, message: 'changes nothing: give settings, model, environment or git' });
    }
  });
  if (plan.run.decodeTokens === 0 && plan.score !== 'prefill') {
    problems.push({ path: ['run', 'decodeTokens'], message: `the score ${plan.score} needs an answer` });
  }
  if (plan.run.promptTokens === 0 && plan.score !== 'decode') {
    problems.push({ path: ['run', 'promptTokens'], message: `the score ${plan.score} needs a prompt` });
  }
  return problems;
}

/** Zod's optional fields may be there and undefined; the engine's may not. */
export function withoutUndefined<T extends object>(
  value: T | undefined,
): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(value ?? {}).filter(([, each]) => each !== undefined)) as {
    [K in keyof T]: Exclude<T[K], undefined>;
  };
}
