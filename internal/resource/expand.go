package resource

import (
	"fmt"
	"strings"
)

// expand replaces $VAR, ${VAR} and ${VAR:-default}; $$ is a dollar sign. It reports whether there was anything
// to replace. A default is used where the variable is unset or empty, as a shell does, and is itself plain text.
// What has no default is looked up in required.
func expand(s string, env, required func(string) (string, bool)) (out string, expanded bool, err error) {
	i := strings.IndexByte(s, '$')
	if i < 0 {
		return s, false, nil
	}
	var b strings.Builder
	for ; i >= 0; i = strings.IndexByte(s, '$') {
		b.WriteString(s[:i])
		s = s[i+1:]
		switch {
		case strings.HasPrefix(s, "$"):
			b.WriteByte('$')
			s = s[1:]
		case strings.HasPrefix(s, "{"):
			end := strings.IndexByte(s, '}')
			if end < 0 {
				return "", false, fmt.Errorf("${ without its }")
			}
			name, def, hasDefault := strings.Cut(s[1:end], ":-")
			if variable(name) != len(name) || name == "" {
				return "", false, fmt.Errorf("${%s} names no variable", s[1:end])
			}
			lookUp := required
			if hasDefault {
				lookUp = env
			}
			value, ok := lookUp(name)
			if hasDefault && value == "" {
				value, ok = def, true
			}
			if !ok {
				return "", false, fmt.Errorf("the environment variable %s is not set", name)
			}
			b.WriteString(value)
			s = s[end+1:]
		default:
			n := variable(s)
			if n == 0 {
				return "", false, fmt.Errorf("a $ without a variable's name")
			}
			value, ok := required(s[:n])
			if !ok {
				return "", false, fmt.Errorf("the environment variable %s is not set", s[:n])
			}
			b.WriteString(value)
			s = s[n:]
		}
	}
	b.WriteString(s)
	return b.String(), true, nil
}

// variable returns how much of the start of s is the name of a variable.
func variable(s string) int {
	for i, c := range []byte(s) {
		letter := c == '_' || 'a' <= c|0x20 && c|0x20 <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return i
		}
	}
	return len(s)
}
