package cli

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

// TestPlain holds the shape that scripts rely on.
func TestPlain(t *testing.T) {
	at := timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("", 3600)))
	for _, tt := range []struct {
		name string
		in   *adminv1.LogEntry
		want string
	}{
		{"empty: all but absent messages", &adminv1.LogEntry{},
			`{"actor":"","changes":[],"comment":"","revision":0,"tenant":""}`},
		{"64 bits are a number, times are UTC, enums are words",
			&adminv1.LogEntry{Revision: 1 << 60, Time: at, Changes: []*adminv1.Change{{Op: adminv1.Change_OP_CREATE, Kind: "target"}}},
			`{"actor":"","changes":[{"fields":[],"kind":"target","name":"","op":"create","renamedFrom":""}],"comment":"","revision":1152921504606846976,"tenant":"","time":"2026-01-02T02:04:05.000006Z"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := json.Marshal(plainOne(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("plainOne (-want +got):\n%s", diff)
			}
		})
	}
	proxy := &adminv1.Proxy{Revisions: map[string]int64{"acme": 1 << 60}}
	if got, want := plainOne(proxy)["revisions"], map[string]any{"acme": int64(1 << 60)}; !cmp.Equal(got, any(want)) {
		t.Errorf("a map of 64 bit numbers is %v, want %v", got, want)
	}
	if got := plain([]*adminv1.Proxy(nil)); got == nil || len(got) != 0 {
		t.Errorf("plain(nil) = %#v, want an empty list: null is none", got)
	}
}

func TestYAMLAsJSON(t *testing.T) {
	value := map[string]any{"port": float64(3000), "index": float64(4294967295), "revision": int64(1 << 60), "text": "1.0", "yes": "yes", "list": []any{}, "on": true}
	got, err := asYAML(value)
	if err != nil {
		t.Fatal(err)
	}
	want := `index: 4294967295
list: []
"on": true
port: 3000
revision: 1152921504606846976
text: "1.0"
"yes": "yes"
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("asYAML (-want +got):\n%s", diff)
	}
}

func TestParseWait(t *testing.T) {
	for in, want := range map[string]uint32{"": 100, "all": 100, "95%": 95, "1%": 1, "100%": 100, "50": 50} {
		if got, err := parseWait(in); got != want || err != nil {
			t.Errorf("parseWait(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"0%", "101%", "-1%", "some", "9.5%", "%"} {
		_, err := parseWait(in)
		var coded *codedError
		if !errors.As(err, &coded) || coded.code != Invalid || !strings.Contains(err.Error(), "--wait="+in) {
			t.Errorf("parseWait(%q): %v, want an Invalid that quotes it", in, err)
		}
	}
}

// TestJudge: what the last status of a wait means for the exit code.
func TestJudge(t *testing.T) {
	refused := []*adminv1.ProxyRefusal{{Proxy: "p1", Object: "target/a/b", Field: "policies.backendTLS.root", Reason: "is not there"}}
	for _, tt := range []struct {
		name           string
		wait           outcome
		status         *adminv1.StatusResponse
		code           Code
		stdout, stderr string
	}{
		{"all serve", outcome{percent: 100}, &adminv1.StatusResponse{Revision: 7, Serving: 2, Total: 2}, Done,
			"revision 7: 2 of 2 proxies serve it\n", ""},
		{"one refuses", outcome{percent: 100}, &adminv1.StatusResponse{Revision: 7, Serving: 1, Total: 2, Refused: refused}, Refused,
			"", "p1 refused target/a/b: policies.backendTLS.root: is not there\n"},
		{"one refuses, and the share is reached", outcome{percent: 50}, &adminv1.StatusResponse{Revision: 7, Serving: 1, Total: 2, Refused: refused}, Done,
			"revision 7: 1 of 2 proxies serve it\n", "p1 refused target/a/b: policies.backendTLS.root: is not there\n"},
		{"the share is not reached", outcome{percent: 60}, &adminv1.StatusResponse{Revision: 7, Serving: 1, Total: 2, Refused: refused}, Refused,
			"", "p1 refused target/a/b: policies.backendTLS.root: is not there\n"},
		{"one went away", outcome{percent: 100}, &adminv1.StatusResponse{Revision: 7, Serving: 1, Total: 2, Disconnected: []string{"p2"}}, Done,
			"revision 7: 1 of 2 proxies serve it\n", "not connected: p2\n"},
		{"one went away, strictly", outcome{percent: 100, strict: true}, &adminv1.StatusResponse{Revision: 7, Serving: 1, Total: 2, Disconnected: []string{"p2"}}, TimedOut,
			"", "not connected: p2\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			code := Done
			if err := tt.wait.judge(Env{Stderr: &stderr}, &stdout, tt.status); err != nil {
				var coded *codedError
				if !errors.As(err, &coded) {
					t.Fatal(err)
				}
				code = coded.code
			}
			if code != tt.code || stdout.String() != tt.stdout || stderr.String() != tt.stderr {
				t.Errorf("exit %d, stdout %q, stderr %q; want %d, %q, %q", code, stdout.String(), stderr.String(), tt.code, tt.stdout, tt.stderr)
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	for code, want := range map[codes.Code]Code{
		codes.InvalidArgument: Invalid, codes.NotFound: Invalid, codes.AlreadyExists: Invalid, codes.Aborted: Conflict,
		codes.DeadlineExceeded: TimedOut, codes.Unavailable: Failed, codes.PermissionDenied: Failed, codes.Internal: Failed,
	} {
		if got := codeOf(status.Error(code, "x")); got != want {
			t.Errorf("%s: exit %d, want %d", code, got, want)
		}
	}
}

// What could not be written was not done: `sluice diff > report` on a full disk is no report.
func TestOutputThatIsLost(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f.yaml")
	if err := os.WriteFile(file, []byte("mcp: {targets: [{name: a, mcp: {host: \"https://a.example.com/mcp\"}}]}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"validate", "-f", file}, {"explain", "target", "a", "-f", file}, {"explain", "target", "a", "-f", file, "-o", "json"},
		{"explain", "decision", "--tool", "x", "-f", file}, {"schema"}, {"version"}, {"help"},
	} {
		var stderr strings.Builder
		code := Run(t.Context(), Env{Args: args, Stdin: strings.NewReader(""), Stdout: fullDisk{}, Stderr: &stderr, Getenv: os.LookupEnv})
		if code != Failed || stderr.String() != "sluice: the disk is full\n" {
			t.Errorf("%s: exit %d, %q", args, code, stderr.String())
		}
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }

// What others wrote (comments, names of files, what a target answered) is told and not obeyed: neither by the terminal nor by
// who reads lines.
func TestControlCharacters(t *testing.T) {
	const evil = "fine\x1b[2J\n3  admin\tforged\u202e\xff \"é\""
	var table strings.Builder
	if err := rows(&table, "REVISION COMMENT", func(row func(...any)) { row(2, evil) }); err != nil {
		t.Fatal(err)
	}
	want := "REVISION  COMMENT\n2         fine\\x1b[2J\\n3  admin\\tforged\\u202e\\xff \"é\"\n"
	if table.String() != want {
		t.Errorf("table %q, want %q", table.String(), want)
	}
	var diagnostics strings.Builder
	printDiagnostics(&diagnostics, []*adminv1.Diagnostic{{File: "f\x1b[2J.yaml", Message: "no"}})
	if got := diagnostics.String(); got != "f\\x1b[2J.yaml: no\n" {
		t.Errorf("diagnostic %q", got)
	}
	for _, text := range []string{"a\x1b[2Jb", "a\tb", "a\x7fb", "a\u0085b", "a\u202eb", "a\u2028b", "a\u00a0b", "a\nb", "\U000e0001", ".inf", "key\n"} {
		data, err := asYAML(map[string]any{"x": []any{text, 7}, "y" + text: true})
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsFunc(string(data), func(r rune) bool { return r != '\n' && !unicode.IsGraphic(r) }) {
			t.Errorf("YAML of %q is %q", text, data)
		}
		var got map[string]any
		if err := yaml.Unmarshal(data, &got); err != nil || got["x"].([]any)[0] != text || got["y"+text] != true {
			t.Errorf("YAML of %q is %q, read as %q, %v", text, data, got, err)
		}
	}
}

func TestAgo(t *testing.T) {
	for _, tt := range []struct {
		age  time.Duration
		want string
	}{{5 * time.Second, "5s ago"}, {90 * time.Second, "1m ago"}, {25 * time.Hour, "25h ago"}} {
		if got := ago(timestamppb.New(time.Now().Add(-tt.age))); got != tt.want {
			t.Errorf("ago(%s) = %q, want %q", tt.age, got, tt.want)
		}
	}
	if got := ago(nil); got != "never" {
		t.Errorf("ago(nil) = %q", got)
	}
}
