package upstream

import (
	"bytes"
	"math"
	"strconv"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// idKey is what an id or progress token means, so that it is found again however the peer writes it. It is plain if
// any JSON library gives it back unchanged; others are not risked, but replaced on the way to the target.
func idKey(raw []byte) (key string, plain bool) {
	if len(raw) == 0 {
		return "", false
	}
	if raw[0] == '"' {
		text, ok := mcp.Unquote(raw)
		if !ok {
			return "?" + string(raw), false
		}
		return "s" + string(text), len(raw) <= 256 && bytes.IndexByte(raw, '\\') < 0
	}
	if integer(raw) {
		return "n" + string(raw), true
	}
	f, err := strconv.ParseFloat(string(raw), 64)
	if err == nil && f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		return "n" + strconv.FormatInt(int64(f), 10), false // 1.0 for 1
	}
	return "n" + string(raw), false
}

// integer reports whether raw is an integer of up to 15 digits, which a float64 holds.
func integer(raw []byte) bool {
	digits := bytes.TrimPrefix(raw, []byte("-"))
	if len(digits) == 0 || len(digits) > 15 || digits[0] == '0' && len(raw) > 1 {
		return false
	}
	for _, c := range digits {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// isNull reports whether an id is absent or null.
func isNull(raw []byte) bool { return len(raw) == 0 || string(raw) == "null" }

// replaceSubscriptionID writes the result of subscriptions/listen anew with another
// _meta["io.modelcontextprotocol/subscriptionId"]; what has none stays as it is. All other values keep their bytes.
func replaceSubscriptionID(result, id []byte, lim mcp.Limits) []byte {
	out, err := replaceMember(result, "_meta", lim, func(meta []byte) ([]byte, error) {
		return replaceMember(meta, mcp.MetaSubscriptionID, lim, func([]byte) ([]byte, error) { return id, nil })
	})
	if err != nil {
		return result
	}
	return out
}

func replaceMember(object []byte, name string, lim mcp.Limits, f func(old []byte) ([]byte, error)) ([]byte, error) {
	out := []byte{'{'}
	err := mcp.Members(object, lim, []string{name}, func(key, value []byte) error {
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(mcp.AppendString(out, key), ':')
		if string(key) == name {
			var err error
			if value, err = f(value); err != nil {
				return err
			}
		}
		out = append(out, value...)
		return nil
	})
	return append(out, '}'), err
}
