package route

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

func exact(p string) *xdsv1.RouteMatch {
	return &xdsv1.RouteMatch{Path: &xdsv1.RouteMatch_Exact{Exact: p}}
}

func prefix(p string) *xdsv1.RouteMatch {
	return &xdsv1.RouteMatch{Path: &xdsv1.RouteMatch_PathPrefix{PathPrefix: p}}
}

func regex(p string) *xdsv1.RouteMatch {
	return &xdsv1.RouteMatch{Path: &xdsv1.RouteMatch_Regex{Regex: p}}
}

func with(m *xdsv1.RouteMatch, headers ...string) *xdsv1.RouteMatch {
	for i := 0; i < len(headers); i += 2 {
		h := &xdsv1.HeaderMatch{Name: headers[i], Value: &xdsv1.HeaderMatch_Exact{Exact: headers[i+1]}}
		if re, ok := strings.CutPrefix(headers[i+1], "~"); ok {
			h.Value = &xdsv1.HeaderMatch_Regex{Regex: re}
		}
		m.Headers = append(m.Headers, h)
	}
	return m
}

func rule(t testing.TB, value, host string, matches ...*xdsv1.RouteMatch) Rule[string] {
	t.Helper()
	m, err := Compile(matches)
	if err != nil {
		t.Fatal(err)
	}
	return Rule[string]{Host: host, Matches: m, Value: value}
}

func TestMatch(t *testing.T) {
	// Written from the vaguest to the most exact, so that order alone would answer wrongly.
	table := NewTable([]Rule[string]{
		rule(t, "all", ""),
		rule(t, "any-host /a", "", prefix("/a")),
		rule(t, "short regex", "*.example.com", regex("/v.*")),
		rule(t, "long regex", "*.example.com", regex("/v[0-9]/.*")),
		rule(t, "wild", "*.example.com", prefix("/w")),
		rule(t, "deep wild", "*.b.example.com", prefix("/w")),
		rule(t, "prefix /", "host.test", prefix("/")),
		rule(t, "prefix /a", "host.test", prefix("/a")),
		rule(t, "prefix /a/b/", "host.test", prefix("/a/b/")),
		rule(t, "prefix /a with header", "host.test", with(prefix("/a"), "X-Kind", "one")),
		rule(t, "prefix /a with two headers", "host.test", with(prefix("/a"), "X-Kind", "one", "x-tier", "~g(old|reen)")),
		rule(t, "exact /a/b", "host.test", exact("/a/b")),
		rule(t, "either", "host.test", exact("/one"), exact("/two")),
		rule(t, "late", "host.test", exact("/one")),
	})
	for _, tt := range []struct {
		host, path string
		header     http.Header
		want       string
	}{
		{"host.test", "/a/b", nil, "exact /a/b"},
		{"host.test", "/a/b/c", nil, "prefix /a/b/"},
		{"host.test", "/a/b/", nil, "prefix /a/b/"},
		{"host.test", "/a", nil, "prefix /a"},
		{"host.test", "/a/", nil, "prefix /a"},
		{"host.test", "/a/x", nil, "prefix /a"},
		{"host.test", "/ab", nil, "prefix /"},
		{"host.test", "/a/bc", nil, "prefix /a"},
		{"host.test", "/", nil, "prefix /"},
		{"host.test", "/a/x", http.Header{"X-Kind": {"one"}}, "prefix /a with header"},
		{"host.test", "/a/x", http.Header{"X-Kind": {"one"}, "X-Tier": {"gold"}}, "prefix /a with two headers"},
		{"host.test", "/a/x", http.Header{"X-Kind": {"one"}, "X-Tier": {"golden"}}, "prefix /a with header"},
		{"host.test", "/a/x", http.Header{"X-Kind": {"one", "two"}}, "prefix /a"},
		{"host.test", "/a/b/c", http.Header{"X-Kind": {"one"}}, "prefix /a/b/"},
		{"host.test", "/two", nil, "either"},
		{"host.test", "/one", nil, "either"},
		{"x.example.com", "/v1/a", nil, "long regex"},
		{"x.example.com", "/vx", nil, "short regex"},
		{"x.example.com", "/evil/v1/x", nil, "all"}, // expressions match whole paths
		{"x.example.com", "/w", nil, "wild"},
		{"x.b.example.com", "/w", nil, "deep wild"},
		{"x.b.example.com", "/v1/a", nil, "long regex"}, // falls from the better host to the vaguer one
		{"example.com", "/w", nil, "all"},
		{"notexample.com", "/w", nil, "all"},
		{"x.example.com", "/a/x", nil, "any-host /a"},
		{"", "/zzz", nil, "all"},
	} {
		got, ok := table.Match(Hostname(tt.host), tt.path, tt.header)
		if !ok || got != tt.want {
			t.Errorf("Match(%q, %q, %v) = %q, %v, want %q", tt.host, tt.path, tt.header, got, ok, tt.want)
		}
	}
}

func TestNoMatch(t *testing.T) {
	table := NewTable([]Rule[string]{rule(t, "a", "a.test", prefix("/a"))})
	for _, tt := range []struct{ host, path string }{{"a.test", "/b"}, {"b.test", "/a"}, {"a.test", ""}, {"", "/a"}} {
		if got, ok := table.Match(tt.host, tt.path, nil); ok {
			t.Errorf("Match(%q, %q) = %q, want none", tt.host, tt.path, got)
		}
	}
	var zero Table[string]
	if _, ok := zero.Match("a", "/", nil); ok {
		t.Error("the zero table matches")
	}
}

func TestHostname(t *testing.T) {
	for host, want := range map[string]string{
		"a.test": "a.test", "A.Test:443": "a.test", "a.test.": "a.test", "a.test.:80": "a.test", "[::1]:3000": "::1", "[::1]": "::1",
		"::1": "::1", "127.0.0.1:1": "127.0.0.1", "": "", ":80": "", "[": "[",
	} {
		if got := Hostname(host); got != want {
			t.Errorf("Hostname(%q) = %q, want %q", host, got, want)
		}
	}
}

func TestIntersect(t *testing.T) {
	for _, tt := range []struct {
		a, b, want string
		ok         bool
	}{
		{"", "", "", true},
		{"a.test", "", "a.test", true},
		{"*.test", "a.test", "a.test", true},
		{"*.test", "*.a.test", "*.a.test", true},
		{"*.test", "test", "", false},
		{"a.test", "b.test", "", false},
		{"*.a.test", "*.b.test", "", false},
		{"*", "a.test", "a.test", true},
	} {
		for _, pair := range [][2]string{{tt.a, tt.b}, {tt.b, tt.a}} {
			if got, ok := Intersect(pair[0], pair[1]); got != tt.want || ok != tt.ok {
				t.Errorf("Intersect(%q, %q) = %q, %v, want %q, %v", pair[0], pair[1], got, ok, tt.want, tt.ok)
			}
		}
	}
}

func TestCompileErrors(t *testing.T) {
	for _, tt := range []struct {
		match *xdsv1.RouteMatch
		field string
	}{
		{exact("a"), "matches[1].path.exact"},
		{prefix(""), "matches[1].path.pathPrefix"},
		{regex("("), "matches[1].path.regex"},
		{regex("a)(b"), "matches[1].path.regex"}, // would compile once wrapped
		{with(prefix("/"), "X", "~("), "matches[1].headers[0].value.regex"},
		{with(prefix("/"), "", "x"), "matches[1].headers[0].name"},
	} {
		_, err := Compile([]*xdsv1.RouteMatch{exact("/"), tt.match})
		var e *Error
		if !errors.As(err, &e) || e.Field != tt.field {
			t.Errorf("Compile(%v) error = %v, want one at %s", tt.match, err, tt.field)
		}
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	table := NewTable([]Rule[string]{rule(t, "mcp", "*.example.com", prefix("/mcp")), rule(t, "rest", "")})
	header := http.Header{"Accept": {"x"}}
	if n := testing.AllocsPerRun(100, func() {
		if v, _ := table.Match(Hostname("a.example.com:3000"), "/mcp/tools", header); v != "mcp" {
			t.Fatal(v)
		}
	}); n != 0 {
		t.Errorf("a match allocates %v times", n)
	}
}
