package policy

import (
	"strings"
)

// normalURI is a URI in normal form: scheme and host in lower case, no escape of a character that needs none, hexadecimal
// digits in upper case, no dot segments (RFC 3986 section 6.2.2), and without what many servers do not look at: a fragment, an
// empty query, empty segments. What is no URI with a scheme is only unescaped. It allocates nothing for a URI in that form.
func normalURI(uri string) string {
	uri = unescapeUnreserved(uri)
	scheme, rest, ok := strings.Cut(uri, ":")
	if !ok || strings.ContainsAny(scheme, "/?#") {
		return uri
	}
	authority, path := "", rest
	if after, found := strings.CutPrefix(rest, "//"); found {
		end := strings.IndexAny(after, "/?#")
		if end < 0 {
			end = len(after)
		}
		authority, path = after[:end], after[end:]
	}
	path, _, fragment := strings.Cut(path, "#")
	path, query, asked := strings.Cut(path, "?")
	bare := fragment || asked && query == ""
	if query != "" {
		query = "?" + query
	}
	host := authority[strings.LastIndexByte(authority, '@')+1:]
	lowScheme, lowHost, plain := strings.ToLower(scheme), strings.ToLower(host), removeDotSegments(path)
	if lowScheme == scheme && lowHost == host && plain == path && !bare {
		return uri
	}
	if strings.HasPrefix(rest, "//") {
		lowScheme += "://" + authority[:len(authority)-len(host)] + lowHost
	} else {
		lowScheme += ":"
	}
	return lowScheme + plain + query
}

// unescapeUnreserved decodes escapes of letters, digits and -._~, and writes the other escapes in upper case.
func unescapeUnreserved(s string) string {
	at := strings.IndexByte(s, '%')
	if at < 0 {
		return s
	}
	b := append(make([]byte, 0, len(s)), s[:at]...)
	for i := at; i < len(s); i++ {
		if s[i] != '%' || i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2]) {
			b = append(b, s[i])
			continue
		}
		if c := unhex(s[i+1])<<4 | unhex(s[i+2]); isUnreserved(c) {
			b = append(b, c)
		} else {
			const digits = "0123456789ABCDEF"
			b = append(b, '%', digits[c>>4], digits[c&15])
		}
		i += 2
	}
	if string(b) == s {
		return s
	}
	return string(b)
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}

func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// removeDotSegments is RFC 3986 section 5.2.4, for paths that begin with a slash and others.
func removeDotSegments(path string) string {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	if !strings.Contains(path, "/.") && !strings.HasPrefix(path, ".") {
		return path
	}
	var out []string
	segments := strings.Split(path, "/")
	for i, s := range segments {
		last := i == len(segments)-1
		switch s {
		case ".", "..":
			if s == ".." && len(out) > 0 && !(len(out) == 1 && out[0] == "") {
				out = out[:len(out)-1]
			}
			if last {
				out = append(out, "")
			}
		default:
			out = append(out, s)
		}
	}
	return strings.Join(out, "/")
}
