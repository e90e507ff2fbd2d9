/** Models by name on the command line: fetched from a server, killed on the way, opened, checked, listed and deleted. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { type CliRun, runCli } from '../support/cli.js';
import { temporaryFolder } from '../support/folder.js';
import { HubServer } from '../support/hub-server.js';

const MODEL = readFileSync(fileURLToPath(new URL('../../models/tldr-UD_Q3_K_XL.gguf', import.meta.url)));
const NAME = 'moestream/tldr';

let server: HubServer;
let env: Record<string, string>;

beforeAll(async () => {
  server = await HubServer.start([
    { path: 'tldr-UD_Q3_K_XL.gguf', bytes: MODEL },
    { path: 'README.md', bytes: Buffer.from('# tldr') },
  ]);
  env = { HF_ENDPOINT: server.endpoint, HF_TOKEN: '', MOESTREAM_MODELS: temporaryFolder() };
});

const cli = (...args: string[]): Promise<CliRun> => runCli(args, { env });

describe('a model by name', () => {
  it('is not there before it is pulled', async () => {
    const run = await cli('inspect', NAME);
    expect(run.code).toBe(3);
    expect(run.stderr).toContain(`moestream pull ${NAME}`);
    expect((await cli('ls')).stderr).toContain('nothing was pulled');
    expect((await cli('pull', NAME, '--offline')).code).toBe(3);
  });

  it('shows sizes, room and the plan, and fetches no more than heads, with --dry-run', async () => {
    const run = await cli('pull', NAME, '--dry-run');
    expect(run.stderr).toMatch(/moestream\/tldr:UD_Q3_K_XL: 1 files, 30\.2 MB, .* free/);
    expect(run.stderr).toMatch(/% of its experts stay in memory; it runs from/);
    expect(run.code).toBe(0);
    expect(server.rangeBytes).toBeLessThan(20e6);
    expect((await cli('ls')).stderr).toContain('nothing was pulled');
  });

  it('comes whole after its pull was killed, and runs under its name', async () => {
    server.fault = () => ({ standStillAfterBytes: 100_000 });
    const arrived = new Promise<void>((resolve) => {
      const fault = server.fault;
      server.fault = (asked, count) => {
        // The heads for the plan come first; the transfer itself asks for all of the file.
        if (asked.range !== `bytes=0-${MODEL.length - 1}`) return undefined;
        resolve();
        return fault(asked, count);
      };
    });
    const killed = runCli(['pull', NAME], { env, kill: arrived });
    expect((await killed).signal).toBe('SIGKILL');
    expect((await cli('ls')).stdout).toMatch(/moestream\/tldr:UD_Q3_K_XL +30\.2 MB +\d+ %/);
    expect((await cli('inspect', NAME)).stderr).toContain('not whole yet');

    server.fault = () => undefined;
    const again = await cli('pull', NAME);
    expect(again.stderr).toContain('whole and verified');
    expect(again.code).toBe(0);
    const run = await cli(
      'generate',
      '-m',
      `${NAME}:UD_Q3_K_XL`,
      '-n',
      '4',
      '--temp',
      '0',
      '--precision',
      'exact',
      'tar',
    );
    expect(run.code).toBe(0);
    expect(run.stdout).toMatch(/^# tar/);
  });

  it('is checked, listed and deleted', async () => {
    expect((await cli('verify', NAME)).stderr).toContain('all 1 files match the published hashes');
    expect((await cli('ls')).stdout).toMatch(/^moestream\/tldr:UD_Q3_K_XL +30\.2 MB +\d{4}-\d\d-\d\d\n$/);
    expect(JSON.parse((await cli('pull', NAME, '--offline', '--json')).stdout)).toMatchObject({
      complete: true,
    });
    expect((await cli('rm', NAME)).stderr).toContain('deleted moestream/tldr:UD_Q3_K_XL, 30.2 MB');
    expect((await cli('rm', NAME)).code).toBe(3);
  });

  it('is refused with what to do when the name, the server or the token is wrong', async () => {
    expect((await cli('pull', 'tldr')).code).toBe(2);
    const unreachable = { ...env, HF_ENDPOINT: 'ftp://somewhere' };
    expect((await runCli(['pull', NAME], { env: unreachable })).stderr).toContain('HF_ENDPOINT');
    expect((await runCli(['pull', NAME], { env: { ...env, HF_TOKEN: 'secret' } })).stderr).not.toContain(
      'secret',
    );
    expect((await runCli(['ls'], { env: { ...env, MOESTREAM_MODELS: 'relative' } })).code).toBe(2);
  });
});
