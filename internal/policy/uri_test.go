package policy

import (
	"net/url"
	"testing"
)

func TestNormalURI(t *testing.T) {
	for uri, want := range map[string]string{
		"file:///etc/passwd":             "file:///etc/passwd",
		"FILE:///etc/passwd":             "file:///etc/passwd",
		"file:///etc/%70asswd":           "file:///etc/passwd",
		"file:///etc/./passwd":           "file:///etc/passwd",
		"file:///tmp/../etc/passwd":      "file:///etc/passwd",
		"file:///../../etc/passwd":       "file:///etc/passwd",
		"file:///tmp/%2e%2e/etc/passwd":  "file:///etc/passwd",
		"file:///etc//passwd":            "file:///etc/passwd",
		"file:///etc/passwd#x":           "file:///etc/passwd",
		"file:///etc/passwd?":            "file:///etc/passwd",
		"file:///etc/passwd?a=%62&c=%2f": "file:///etc/passwd?a=b&c=%2F",
		"http://User@EXAMPLE.com/A/b/..": "http://User@example.com/A/",
		"test://item/{id}":               "test://item/{id}",
		"urn:ISBN:1":                     "urn:ISBN:1",
		"URN:x/../y":                     "urn:y",
		"no scheme/../x":                 "no scheme/../x",
		"%zz%4":                          "%zz%4",
		"":                               "",
		"a:":                             "a:",
		"a://":                           "a://",
		"a:..":                           "a:",
	} {
		got := normalURI(uri)
		if got != want {
			t.Errorf("%q: %q, want %q", uri, got, want)
		}
		if again := normalURI(got); again != got {
			t.Errorf("%q: %q, and then %q", uri, got, again)
		}
	}
	if n := testing.AllocsPerRun(100, func() { normalURI("file:///etc/passwd") }); n > 0 {
		t.Errorf("%v allocations for what is normal", n)
	}
}

func FuzzNormalURI(f *testing.F) {
	for _, seed := range []string{"file:///a/../b", "A:%41", "a://B/./c?d#e", "a:b:c", "//", "a:.//.."} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		once := normalURI(uri)
		if _, err := url.Parse(uri); err != nil {
			return // it has no normal form, and must do no harm
		}
		if twice := normalURI(once); twice != once {
			t.Errorf("%q: %q, then %q", uri, once, twice)
		}
	})
}

// Rules must admit a resource as it is written and as it may be read.
func TestAdmitSpellings(t *testing.T) {
	target := mustTarget(t, authz(deny(`mcp.resource.name.startsWith("file:///etc/")`), deny(`mcp.resource.name == "test://Raw"`)))
	for uri, want := range map[string]bool{
		"file:///tmp/a": true, "file:///etc/a": false, "file:///tmp/../etc/a": false, "File:///etc/a": false, "file:///%65tc/a": false,
		"test://Raw": false, "test://raw": true, // what is refused as written stays so
	} {
		c := &Call{Method: "resources/read", Kind: Resource, Name: uri}
		if got := target.Admit(c).Allowed; got != want {
			t.Errorf("%s: %v, want %v", uri, got, want)
		}
		if target.AdmitList(c).Allowed != want {
			t.Errorf("%s: listed and callable differ", uri)
		}
	}
}
