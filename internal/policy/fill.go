package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sluicegate/sluice/internal/guard"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// fill is compiled `defaults`, `overrides` and `modelAliases`.
type fill struct {
	values  []filled // in order of names; of a name that is overridden too, the override
	aliases []alias  // the longest names first
}

type filled struct {
	name     string
	raw      []byte // JSON
	override bool
}

type alias struct {
	before, after string // of the wildcard
	wild          bool
	to            string
}

func compileFill(a *policyv1.Ai, field string, errs *problems) *fill {
	f := &fill{}
	for _, from := range []struct {
		values   *structpb.Struct
		override bool
	}{{a.GetOverrides(), true}, {a.GetDefaults(), false}} {
		for _, name := range sortedKeys(from.values.GetFields()) {
			if slices.ContainsFunc(f.values, func(v filled) bool { return v.name == name }) {
				continue
			}
			raw, err := marshalValue(from.values.GetFields()[name].AsInterface())
			if err != nil { // not a number
				errs.add(field+map[bool]string{true: ".overrides.", false: ".defaults."}[from.override]+name, "is no JSON: %v", err)
				continue
			}
			f.values = append(f.values, filled{name, raw, from.override})
		}
	}
	for _, name := range sortedKeys(a.GetModelAliases()) {
		at, to := field+".modelAliases."+name, a.GetModelAliases()[name]
		before, after, wild := strings.Cut(name, "*")
		switch {
		case name == "":
			errs.add(at, "has no name")
		case strings.Contains(after, "*"):
			errs.add(at, "holds more than one *")
		case to == "":
			errs.add(at, "is empty; write the model that it stands for")
		case strings.Contains(to, "*"):
			errs.add(at, "%q holds a *, which no model's name does", to)
		}
		f.aliases = append(f.aliases, alias{before, after, wild, to})
	}
	// A name without a wildcard is as long as a match can be.
	slices.SortStableFunc(f.aliases, func(a, b alias) int {
		if a.wild != b.wild {
			return map[bool]int{true: 1, false: -1}[a.wild]
		}
		return len(b.before) + len(b.after) - len(a.before) - len(a.after)
	})
	if len(f.values) == 0 && len(f.aliases) == 0 {
		return nil
	}
	return f
}

func marshalValue(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// Fills reports whether anything is filled into arguments and parameters, or renamed there.
func (t *Target) Fills() bool { return t != nil && t.ai != nil && t.ai.fill != nil }

// Filled are the names of what defaults and overrides fill in, sorted within each.
func (t *Target) Filled() []string {
	if !t.Fills() {
		return nil
	}
	var names []string
	for _, v := range t.ai.fill.values {
		names = append(names, v.name)
	}
	return names
}

// FillArguments does so for the arguments of a tool call: nil or `null` stand for none. Names that the tool does not declare are
// left out. It returns arguments itself if nothing changes. An error says why arguments can be read in two ways.
func (t *Target) FillArguments(arguments []byte, declared func(name string) bool) ([]byte, error) {
	if !t.Fills() {
		return arguments, nil
	}
	object := arguments
	if s := bytes.TrimSpace(arguments); len(s) == 0 || string(s) == "null" {
		object = []byte("{}")
	} else if s[0] != '{' {
		return arguments, nil // the target's to refuse
	}
	out, err := t.ai.fill.object(object, declared, guard.ModelArgument)
	if err != nil {
		return nil, err
	}
	if string(out) == "{}" {
		return arguments, nil
	}
	return out, nil
}

// samplingParams are the parameters of sampling/createMessage that an operator may want to set.
var samplingParams = []string{"modelPreferences", "systemPrompt", "includeContext", "temperature", "maxTokens", "stopSequences", "metadata", "toolChoice"}

func isSamplingParam(name string) bool { return slices.Contains(samplingParams, name) }

const samplingMethod = "sampling/createMessage"

// FillSampling does so for what a target asks of a client's model: the parameters of a sampling/createMessage request, or those in
// a result's inputRequests. It returns message itself if nothing changes.
func (t *Target) FillSampling(message []byte) ([]byte, error) {
	if !t.Fills() || !bytes.Contains(message, []byte("createMessage")) && !bytes.Contains(message, []byte(`\u`)) {
		return message, nil
	}
	top, err := spans(message, 0, len(message), "method", "params", "result")
	if err != nil {
		return nil, err
	}
	var edits []splice
	add := func(request map[string]span) error {
		params, ok := request["params"]
		if !ok || !isString(message, request["method"], samplingMethod) || message[params.from] != '{' {
			return nil
		}
		out, err := t.ai.fill.object(message[params.from:params.to], isSamplingParam, guard.ModelHints)
		if err == nil {
			edits = append(edits, splice{params, out})
		}
		return err
	}
	if err := add(top); err != nil {
		return nil, err
	}
	if r, ok := top["result"]; ok && message[r.from] == '{' {
		result, err := spans(message, r.from, r.to, "inputRequests")
		if err != nil {
			return nil, err
		}
		if asked, ok := result["inputRequests"]; ok && message[asked.from] == '{' {
			err := guard.Members(message[asked.from:asked.to], func(_ []byte, from, to int) error {
				from, to = from+asked.from, to+asked.from
				if message[from] != '{' {
					return nil
				}
				request, err := spans(message, from, to, "method", "params")
				if err != nil {
					return err
				}
				return add(request)
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return spliced(message, edits), nil
}

// object fills in and renames in one object: arguments, or parameters of sampling.
func (f *fill) object(object []byte, declared func(string) bool, models *guard.Shape) ([]byte, error) {
	present := make([][]span, len(f.values))
	err := guard.Members(object, func(name []byte, from, to int) error {
		for i, v := range f.values {
			if v.name == string(name) {
				present[i] = append(present[i], span{from, to})
			} else if declared(v.name) && strings.EqualFold(v.name, string(name)) {
				return fmt.Errorf("%q differs in case alone from %q, which a policy fills in", clip(string(name)), v.name)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var edits []splice
	var inserted []byte
	for i, v := range f.values {
		switch {
		case !declared(v.name):
		case len(present[i]) == 0:
			inserted = append(append(append(guard.AppendString(inserted, []byte(v.name)), ':'), v.raw...), ',')
		case v.override:
			for _, at := range present[i] {
				edits = append(edits, splice{at, v.raw})
			}
		}
	}
	if len(inserted) > 0 {
		open := bytes.IndexByte(object, '{') + 1
		if rest := bytes.TrimLeft(object[open:], " \t\r\n"); rest[0] == '}' {
			inserted = inserted[:len(inserted)-1]
		}
		edits = append(edits, splice{span{open, open}, inserted})
	}
	object = spliced(object, edits)
	if len(f.aliases) == 0 {
		return object, nil
	}
	named, err := guard.Texts(object, models)
	if err != nil {
		return nil, err
	}
	instead := make([]*string, len(named))
	for i, n := range named {
		if models == guard.ModelArgument && n.Path != "/model" {
			continue // a list of them is another thing
		}
		if to, ok := f.alias(n.Value); ok {
			instead[i] = &to
		}
	}
	return guard.Replace(object, named, instead), nil
}

// alias is the model that name stands for.
func (f *fill) alias(name string) (string, bool) {
	for _, a := range f.aliases {
		if !a.wild && a.before == name ||
			a.wild && len(name) >= len(a.before)+len(a.after) && strings.HasPrefix(name, a.before) && strings.HasSuffix(name, a.after) {
			return a.to, true
		}
	}
	return "", false
}

// A span is where a value stands.
type span struct{ from, to int }

// spans are the values of the members of the object from from to to, by name; of one given twice, the last.
func spans(message []byte, from, to int, names ...string) (map[string]span, error) {
	out := map[string]span{}
	err := guard.Members(message[from:to], func(name []byte, at, end int) error {
		if slices.Contains(names, string(name)) {
			out[string(name)] = span{at + from, end + from}
		}
		return nil
	})
	return out, err
}

func isString(message []byte, at span, want string) bool {
	var got string
	return at.to > at.from && json.Unmarshal(message[at.from:at.to], &got) == nil && got == want
}

// A splice puts raw in the place of what stands at span.
type splice struct {
	span
	raw []byte
}

func spliced(b []byte, edits []splice) []byte {
	if len(edits) == 0 {
		return b
	}
	slices.SortStableFunc(edits, func(a, b splice) int { return a.from - b.from })
	var out []byte
	at := 0
	for _, e := range edits {
		out = append(append(out, b[at:e.from]...), e.raw...)
		at = e.to
	}
	return append(out, b[at:]...)
}
