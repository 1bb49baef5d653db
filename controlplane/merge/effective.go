package merge

import (
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// A Kind of policy, by its JSON name, e.g. `mcpAuthorization`.
type Kind = string

// authorization is the one kind that levels can enforce side by side: it narrows, so all of it can hold at once.
const authorization Kind = "mcpAuthorization"

// kinds are the fields of Policies, in the order of the proto.
var kinds = func() (out []protoreflect.FieldDescriptor) {
	fields := (&policyv1.Policies{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		out = append(out, fields.Get(i))
	}
	return out
}()

// A Level is one place where policies are set.
type Level struct {
	// `platform`, `tenant/T`, `listener/L`, `route/R`, `backend/B`, `target/T`.
	Name     string
	Policies *policyv1.Policies
	// Policies that no level below replaces.
	Enforced *policyv1.Policies
	// Where the level was written. If nil: not known.
	Source *adminv1.Source

	key string // of the level's object, which unlike Name is unique: `target/B/T`
}

// Merged is the outcome for one chain of levels.
type Merged struct {
	// Shares its messages with the levels; not to be changed.
	Policies *policyv1.Policies
	// Each must admit beside Policies.McpAuthorization; outermost level first.
	Enforced []*xdsv1.EnforcedAuthorization
	// Name of the level that each kind in Policies came from.
	From map[Kind]string
	// Those of them that a level enforces, in the order of the proto.
	Settled []Kind

	trace map[Kind][]setting // every setting of a kind, outermost first, for Explain
}

// A setting is one policy at one level.
type setting struct {
	level    *Level
	enforced bool
	wins     bool // is in the outcome
	policy   protoreflect.Message
}

// Effective merges levels, from the most general to the target's own. A more specific level replaces a kind whole, never
// field by field: what runs can be read in one manifest. What a level enforces, no level below it replaces; of two
// that enforce one kind the outermost wins. Enforced authorization replaces nothing and nothing replaces it: all of it
// must admit, and the most specific ordinary authorization too.
func Effective(levels ...Level) Merged { return effective(kinds, levels) }

// effective is Effective for some kinds.
func effective(kinds []protoreflect.FieldDescriptor, levels []Level) Merged {
	out := Merged{Policies: &policyv1.Policies{}, From: map[Kind]string{}, trace: map[Kind][]setting{}}
	merged := out.Policies.ProtoReflect()
	for _, fd := range kinds {
		kind := fd.JSONName()
		winner, settled := -1, false // settled: an enforced one has won
		var trace []setting
		for i := range levels {
			l := &levels[i]
			if p := pick(l.Policies, fd); p != nil {
				trace = append(trace, setting{level: l, policy: p})
				if !settled {
					winner = len(trace) - 1
				}
			}
			p := pick(l.Enforced, fd)
			if p == nil {
				continue
			}
			trace = append(trace, setting{level: l, enforced: true, policy: p})
			switch {
			case kind == authorization:
				trace[len(trace)-1].wins = true
				out.Enforced = append(out.Enforced, &xdsv1.EnforcedAuthorization{Level: l.Name, Authorization: l.Enforced.McpAuthorization})
			case !settled:
				winner, settled = len(trace)-1, true
			}
		}
		if winner >= 0 {
			trace[winner].wins = true
			merged.Set(fd, protoreflect.ValueOfMessage(trace[winner].policy))
			out.From[kind] = trace[winner].level.Name
			if settled {
				out.Settled = append(out.Settled, kind)
			}
		}
		if trace != nil {
			out.trace[kind] = trace
		}
	}
	return out
}

// pick returns the policy of one kind, or nil.
func pick(p *policyv1.Policies, fd protoreflect.FieldDescriptor) protoreflect.Message {
	if m := p.ProtoReflect(); m.Has(fd) {
		return m.Get(fd).Message()
	}
	return nil
}

// A mask is a set of kinds: bit i is kinds[i].
type mask uint32

// set tells which kinds a level sets or enforces.
func (l *Level) set() (m mask) {
	p, e := l.Policies.ProtoReflect(), l.Enforced.ProtoReflect()
	for i, fd := range kinds {
		if p.Has(fd) || e.Has(fd) {
			m |= 1 << i
		}
	}
	return m
}

// fields are the kinds of a mask.
func (m mask) fields() (out []protoreflect.FieldDescriptor) {
	for i, fd := range kinds {
		if m&(1<<i) != 0 {
			out = append(out, fd)
		}
	}
	return out
}

// maskOf is the set of the kinds with these names.
func maskOf(names ...Kind) (m mask) {
	for i, fd := range kinds {
		if slices.Contains(names, fd.JSONName()) {
			m |= 1 << i
		}
	}
	return m
}
