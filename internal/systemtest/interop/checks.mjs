// What each client script checks with, so that a log line per check can be counted.
export function check(name, ok, seen) {
  if (!ok) throw new Error(`${name}: saw ${JSON.stringify(seen)}`);
  console.log(`ok ${name}`);
}

export const text = (result) => (result.content ?? []).map((c) => c.text ?? '').join('');
