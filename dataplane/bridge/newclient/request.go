package newclient

import (
	"bytes"
	"crypto/sha256"
	"math"
	"slices"
	"strconv"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
)

// ours reports whether a member of _meta is said in the handshake in the era of sessions, or by logging/setLevel.
func ours(name []byte) bool {
	switch string(name) {
	case mcp.MetaVersion, mcp.MetaClientInfo, mcp.MetaClientCapabilities, mcp.MetaLogLevel:
		return true
	}
	return false
}

// outbound is a client's request as the target gets it. id and token replace the client's, unless they are nil. again is what
// the request's requestState was opened to; nil: it has none.
func outbound(m *mcp.Message, id, token []byte, again *session.Call) ([]byte, error) {
	var e mcp.Edits
	if m.Meta.Span.Present() {
		if err := e.RemoveMembers(m.Body, m.Meta.Span, ours); err != nil {
			return nil, err
		}
	}
	if id != nil {
		e.Replace(m.ID, id)
	}
	if token != nil {
		e.Replace(m.Meta.ProgressToken, token)
	}
	if again != nil {
		switch {
		case again.HasState:
			e.String(m.RequestState.Span, []byte(again.State))
		default:
			err := e.RemoveMembers(m.Body, m.Params, func(name []byte) bool {
				return string(name) == "requestState" || string(name) == "inputResponses" && again.Answered
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return e.Apply(nil, m.Body), nil
}

// digest is over what makes a request the same: method, what it is for, and its arguments, however they are written.
func digest(m *mcp.Message) [sha256.Size]byte {
	all := field(nil, m.Method)
	all = field(all, m.Name.Value)
	all = field(all, m.URI.Value)
	all = field(all, canonical(nil, m.Arguments.Of(m.Body)))
	return sha256.Sum256(all)
}

// canonical appends a value in a form that does not depend on the order of members, on blanks or on escapes. Numbers stay
// as they were written: what they mean is the target's to say. What is absent is the empty object.
func canonical(dst, raw []byte) []byte {
	raw = bytes.TrimSpace(raw)
	switch {
	case len(raw) == 0:
		return append(dst, "{}"...)
	case raw[0] == '{':
		var all [][]byte
		err := mcp.Members(raw, mcp.Limits{}, nil, func(name, value []byte) error {
			all = append(all, canonical(append(mcp.AppendString(nil, name), ':'), value))
			return nil
		})
		if err != nil { // a name given twice: nobody knows what it means
			return append(dst, raw...)
		}
		slices.SortFunc(all, bytes.Compare)
		return append(append(append(dst, '{'), bytes.Join(all, []byte{','})...), '}')
	case raw[0] == '[':
		dst = append(dst, '[')
		n := 0
		_ = mcp.Elements(raw, mcp.Limits{}, func(value []byte) error {
			if n++; n > 1 {
				dst = append(dst, ',')
			}
			dst = canonical(dst, value)
			return nil
		})
		return append(dst, ']')
	case raw[0] == '"':
		if text, ok := mcp.Unquote(raw); ok {
			return mcp.AppendString(dst, text)
		}
	}
	return append(dst, raw...)
}

// idKey is what an id or a progress token means, however it is written: `1` and `1.0` are one to most servers.
func idKey(raw []byte) string {
	if text, ok := mcp.Unquote(raw); ok {
		return "s" + string(text)
	}
	if f, err := strconv.ParseFloat(string(raw), 64); err == nil && math.Abs(f) < 1<<53 {
		return "n" + strconv.FormatFloat(f, 'g', -1, 64)
	}
	return "n" + string(raw)
}

// loud reports whether a message of one level is for those who asked for another; unknown ones are.
func loud(level, asked string) bool {
	have, want := slices.Index(mcp.LogLevels, level), slices.Index(mcp.LogLevels, asked)
	return have < 0 || want < 0 || have >= want
}
