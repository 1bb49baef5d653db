// Package snapshot turns what the control plane pushed into one immutable, compiled [Index], swapped atomically.
//
// What is compiled together is a unit: a Binding with its Target, EffectivePolicy, Secrets and files; a Route; a
// Listener. A unit that does not build keeps its whole last good compiled form, and the reason is returned; with
// no good form it is there with Refused set and answers 503: it is never reachable without its policy and never
// silently gone. All other units swap at once. A unit whose inputs did not change is not compiled again.
package snapshot
