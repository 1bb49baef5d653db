// node summary.mjs OUT BASELINE NAME: counts per scenario from the suite's OUT/checks/*/checks.json, or without these (client scenarios)
// from the lines of OUT/suite.log, compared with BASELINE.
// Scenarios count, not checks: a scenario that exchanges no message still passes its wire-schema check.
// Exit 1 if any scenario of the baseline did not run, passed fewer checks or failed more.
import fs from 'node:fs';
import path from 'node:path';

const [, , out, baseline, name] = process.argv;
const columns = ['passed', 'failed', 'warnings', 'skipped'];
const columnOf = { SUCCESS: 'passed', FAILURE: 'failed', WARNING: 'warnings', SKIPPED: 'skipped' };

const got = new Map();
const checks = path.join(out, 'checks');
for (const entry of fs.existsSync(checks) ? fs.readdirSync(checks).sort() : []) {
  const file = path.join(checks, entry, 'checks.json');
  if (!fs.existsSync(file)) continue;
  const row = { passed: 0, failed: 0, warnings: 0, skipped: 0, failures: [] };
  for (const check of JSON.parse(fs.readFileSync(file, 'utf8'))) {
    if (columnOf[check.status]) row[columnOf[check.status]]++;
    if (check.status === 'FAILURE') row.failures.push(`${check.id}: ${(check.errorMessage ?? check.description ?? '').replace(/\s+/g, ' ').slice(0, 300)}`);
  }
  // Directories are server-<scenario>-<time>.
  got.set(entry.replace(/^server-/, '').replace(/-\d{4}-\d\d-\d\dT[\d-]+Z$/, ''), row);
}

if (!fs.existsSync(checks)) {
  const log = fs.readFileSync(path.join(out, 'suite.log'), 'utf8');
  for (const m of log.slice(log.lastIndexOf('=== SUITE SUMMARY ===')).matchAll(/^[✓✗⚠~] (\S+): (\d+) passed, (\d+) failed(?:, (\d+) warnings)?/gm)) {
    got.set(m[1], { passed: +m[2], failed: +m[3], warnings: +(m[4] ?? 0), skipped: 0, failures: [] });
  }
}

let worse = 0;
let equal = 0;
const [header, ...lines] = fs.readFileSync(baseline, 'utf8').trim().split('\n');
if (header.split('\t').join() !== ['scenario', ...columns].join()) throw new Error(`${baseline}: not a baseline`);
for (const line of lines) {
  const [scenario, ...values] = line.split('\t');
  const want = Object.fromEntries(columns.map((c, i) => [c, Number(values[i])]));
  const row = got.get(scenario);
  if (row && row.passed >= want.passed && row.failed <= want.failed) { equal++; continue; }
  worse++;
  console.log(`WORSE ${scenario}: ${row ? columns.filter((c) => row[c] !== want[c]).map((c) => `${c} ${want[c]} -> ${row[c]}`).join(', ') : 'did not run'}`);
  for (const failure of row?.failures ?? []) console.log(`      - ${failure}`);
}
const sum = (c) => [...got.values()].reduce((n, row) => n + row[c], 0);
console.log(`${name}: ${equal}/${lines.length} scenarios as in ${path.basename(baseline)}; checks: ${columns.map((c) => `${sum(c)} ${c}`).join(', ')}`);
process.exit(worse ? 1 : 0);
