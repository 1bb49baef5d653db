package mux

import (
	"net/url"
	"testing"
)

func TestReplaceMetadata(t *testing.T) {
	for _, tt := range []struct{ challenges, replaced, was string }{
		{``, ``, ``},
		{`Bearer`, `Bearer`, ``},
		{`Bearer resource_metadata="https://h/x", scope="a"`, `Bearer resource_metadata="OWN", scope="a"`, `https://h/x`},
		{`Bearer scope="a",RESOURCE_METADATA	= "https://h/\"x"`, `Bearer scope="a",RESOURCE_METADATA	= "OWN"`, `https://h/"x`},
		{`Bearer resource_metadata=https://h/x, scope="a"`, `Bearer resource_metadata="OWN", scope="a"`, `https://h/x`},
		{`Bearer realm="resource_metadata=\"no\"", x=resource_metadata`, `Bearer realm="resource_metadata=\"no\"", x=resource_metadata`, ``},
		{`Bearer resource_metadata_2="x", my_resource_metadata="y"`, `Bearer resource_metadata_2="x", my_resource_metadata="y"`, ``},
		{`Bearer resource_metadata="a", DPoP algs="ES256", resource_metadata="b"`, `Bearer resource_metadata="OWN", DPoP algs="ES256", resource_metadata="OWN"`, `a`},
		{`Bearer resource_metadata="unfinished`, `Bearer resource_metadata="OWN"`, `unfinished`},
		{`Bearer resource_metadata=`, `Bearer resource_metadata="OWN"`, ``},
		{`Bearer resource_metadata="x\`, `Bearer resource_metadata="OWN"`, `x\`},
		{"Bearer realm=\"\xff\", resource_metadata=\"x\"", "Bearer realm=\"\xff\", resource_metadata=\"OWN\"", `x`},
	} {
		if replaced, was := replaceMetadata(tt.challenges, "OWN"); replaced != tt.replaced || was != tt.was {
			t.Errorf("%s:\n%s, %q, want\n%s, %q", tt.challenges, replaced, was, tt.replaced, tt.was)
		}
	}
}

func TestSameOrigin(t *testing.T) {
	for _, tt := range []struct {
		url, origin string
		want        bool
	}{
		{"https://h/x", "https://H:443/mcp", true},
		{"https://h:443/x", "https://h/mcp", true},
		{"http://h/x", "https://h/mcp", false},
		{"https://h:8443/x", "https://h/mcp", false},
		{"https://h.evil/x", "https://h/mcp", false},
		{"https://u@h/x", "https://h/mcp", false},
		{"//h/x", "https://h/mcp", false},
		{"/x", "https://h/mcp", false},
	} {
		u, err := url.Parse(tt.url)
		origin, bad := url.Parse(tt.origin)
		if err != nil || bad != nil || sameOrigin(u, origin) != tt.want {
			t.Errorf("%s, %s: %v", tt.url, tt.origin, !tt.want)
		}
	}
}

func TestIdentifies(t *testing.T) {
	at, err := url.Parse("https://h/a/mcp")
	if err != nil {
		t.Fatal(err)
	}
	for resource, want := range map[string]bool{
		"https://h/a/mcp": true, "https://h/a/mcp/": true, "https://H:443/a": true, "https://h": true, "https://h/": true,
		"https://h/a/mcp/x": false, "https://h/a/m": false, "https://h/b": false, "https://other/a/mcp": false, "http://h/a/mcp": false,
		"https://h/a/mcp?x": false, "https://h/a/mcp#x": false, "": false, "::": false,
	} {
		if identifies(resource, at) != want {
			t.Errorf("%s: %v", resource, !want)
		}
	}
}
