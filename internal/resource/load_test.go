package resource

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// examples returns all YAML files of testdata by name.
func examples(t testing.TB) map[string][]byte {
	out := map[string][]byte{}
	for _, pattern := range []string{"testdata/*.txtar", "testdata/seeds/*.yaml"} {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("nothing matches %s (%v)", pattern, err)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(path, ".txtar") {
				out[path] = data
				continue
			}
			for _, f := range txtar.Parse(data).Files {
				if strings.HasSuffix(f.Name, ".yaml") {
					out[path+"/"+f.Name] = f.Data
				}
			}
		}
	}
	return out
}

// seal does what apply does to inline values, so that objects can be written and read again.
func seal(o *adminv1.Object) {
	for _, c := range Credentials(o) {
		if v, ok := c.GetSource().(*policyv1.Credential_Value); ok {
			c.Source = &policyv1.Credential_Sealed{Sealed: fmt.Sprintf("fp%d", len(v.Value))}
		}
	}
}

// readBack fails unless what Encode writes of objects loads as the same objects.
func readBack(t testing.TB, objects []*adminv1.Object) {
	t.Helper()
	var text bytes.Buffer
	for _, o := range objects {
		text.WriteString("---\n")
		text.Write(Encode(o))
	}
	set, diagnostics := Load([]File{{"encoded.yaml", text.Bytes()}}, nil)
	if len(diagnostics) > 0 {
		t.Fatalf("what Encode wrote does not load:\n%s\n%s", formatAll(diagnostics), text.Bytes())
	}
	if diff := cmp.Diff(objects, set.Objects, protocmp.Transform(), protocmp.IgnoreFields(&adminv1.Object{}, "source")); diff != "" {
		t.Fatalf("read back (-written +read):\n%s\n%s", diff, text.Bytes())
	}
	if changes := Diff(objects, set.Objects); len(changes) > 0 {
		t.Errorf("Diff sees %v between equal objects", changes)
	}
}

func TestEncodeLoads(t *testing.T) {
	for name, data := range examples(t) {
		t.Run(name, func(t *testing.T) {
			set, diagnostics := Load([]File{{name, data}}, testEnv)
			if Failed(diagnostics) {
				t.Skip("a file that does not load")
			}
			var objects []*adminv1.Object
			for _, o := range set.Objects {
				seal(o)
				if !strings.Contains(string(Encode(o)), Redacted) { // client secrets of a cloud
					objects = append(objects, o)
				}
			}
			readBack(t, objects)
		})
	}
}

// TestEveryField writes and reads each field of each kind: that none is out of reach, and no decoder is
// missing. Fields that shapes move elsewhere are read where they go.
func TestEveryField(t *testing.T) {
	for i := range specs.Len() {
		fd := specs.Get(i)
		t.Run(string(fd.Name()), func(t *testing.T) {
			for _, choice := range []int{0, 1, 2, 3, 4, 5, 6, 7} { // members of oneofs in turn
				o := &adminv1.Object{Name: "b/t"}
				m := o.ProtoReflect()
				fill(m.Mutable(fd).Message(), choice)
				switch {
				case o.GetPlatform() != nil:
					o.Name = PlatformName
				case o.GetTenant() != nil:
					o.Name = TenantName
				case o.GetTarget() != nil:
					o.GetTarget().Backend = "b"
				default:
					o.Name = "n"
				}
				readBack(t, []*adminv1.Object{o})
			}
		})
	}
}

// fill sets every field of a message; of a oneof the member whose turn it is.
func fill(m protoreflect.Message, choice int) {
	if m.Descriptor().FullName() == "google.protobuf.Duration" {
		m.Set(m.Descriptor().Fields().ByName("seconds"), protoreflect.ValueOfInt64(90))
		return
	}
	if m.Descriptor().FullName() == "google.protobuf.Struct" {
		return // an empty one is shown as such
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if o := fd.ContainingOneof(); o != nil && o.Fields().Get(choice%o.Fields().Len()) != fd {
			continue
		}
		switch {
		case fd.IsMap() && fd.MapValue().Message() != nil:
			fill(m.Mutable(fd).Map().Mutable(protoreflect.ValueOfString("A b: c").MapKey()).Message(), choice)
		case fd.IsMap():
			m.Mutable(fd).Map().Set(protoreflect.ValueOfString("A b: c").MapKey(), scalarFor(fd.MapValue(), choice))
		case fd.IsList() && fd.Message() != nil:
			fill(m.Mutable(fd).List().AppendMutable().Message(), choice)
		case fd.IsList():
			m.Mutable(fd).List().Append(scalarFor(fd, choice))
		case fd.Message() != nil:
			fill(m.Mutable(fd).Message(), choice)
		default:
			m.Set(fd, scalarFor(fd, choice))
		}
	}
	if t, ok := m.Interface().(*adminv1.HttpTransport); ok {
		t.Host, t.Path, t.Port, t.Tls = "h.example.com", "/p", 80+uint32(choice), choice%2 == 0
	}
	if c, ok := m.Interface().(*policyv1.Credential); ok && c.GetValue() != "" {
		c.Source = &policyv1.Credential_Sealed{Sealed: "s"}
	}
}

func scalarFor(fd protoreflect.FieldDescriptor, choice int) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(7 + choice))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(1 + choice%2))
	}
	return protoreflect.ValueOfString([]string{"plain", "true", "a $x: \"'\n\té", " # - ", "12"}[choice%5])
}

// TestSecretsStayHidden plants values in every credential and looks for them in all that is shown.
func TestSecretsStayHidden(t *testing.T) {
	const secret = "hunter2"
	for i := range specs.Len() {
		o := &adminv1.Object{Name: "x"}
		fill(o.ProtoReflect().Mutable(specs.Get(i)).Message(), 0)
		n := 0
		for _, c := range Credentials(o) {
			c.Source = &policyv1.Credential_Value{Value: secret}
			n++
		}
		other := proto.CloneOf(o)
		for _, c := range Credentials(other) {
			c.Source = &policyv1.Credential_Value{Value: secret + "3"}
		}
		changes := Diff([]*adminv1.Object{o}, []*adminv1.Object{other})
		if n > 0 && (len(changes) != 1 || len(changes[0].GetFields()) != n) {
			t.Errorf("%s: Diff finds %v where %d credentials changed", Kind(o), changes, n)
		}
		shown := string(Encode(o)) + fmt.Sprint(changes) + fmt.Sprint(Show(o)) + formatAll(Validate([]*adminv1.Object{o, other}, Context{}))
		if strings.Contains(shown, secret) {
			t.Errorf("%s shows a credential:\n%s", Kind(o), shown)
		}
	}
}

// TestPlaces holds that a policy, a rule and a name are found in the file, through every form and spelling.
func TestPlaces(t *testing.T) {
	data := `backends:
- name: b
  policies:
    mcpAuthorization:
      rules: ["true"]
  mcp:
    policies:
      backendTLS: {sni: h}
    targets:
    - mcp: {host: http://h}
      name: t
      policies:
        backendAuth:
          key: plain
`
	set, diagnostics := Load([]File{{"f.yaml", []byte(data)}}, nil)
	if len(diagnostics) > 0 {
		t.Fatal(formatAll(diagnostics))
	}
	got := map[string]string{}
	for _, tt := range []struct {
		object int
		field  string
	}{
		{0, ""}, {0, "name"}, {0, "policies.mcpAuthorization"}, {0, "policies.mcpAuthorization.rules[0]"},
		{0, "policies.backendTLS.hostname"}, {0, "policies.backendTLS.root"},
		{1, "name"}, {1, "policies.backendAuth"}, {1, "policies.backendAuth.key.credentials[0].credential"}, {1, "mcp.port"},
	} {
		got[fmt.Sprint(tt.object, " ", tt.field)] = Format(Diagnose(set.Objects[tt.object], severityError, tt.field, "x", ""))
	}
	want := map[string]string{
		"0 ":                                   "f.yaml:2:3: backends[0]: x",
		"0 name":                               "f.yaml:2:3: backends[0].name: x",
		"0 policies.mcpAuthorization":          "f.yaml:4:5: backends[0].policies.mcpAuthorization: x",
		"0 policies.mcpAuthorization.rules[0]": "f.yaml:5:15: backends[0].policies.mcpAuthorization.rules[0]: x",
		"0 policies.backendTLS.hostname":       "f.yaml:8:20: backends[0].mcp.policies.backendTLS.sni: x",
		"0 policies.backendTLS.root":           "f.yaml:8:7: backends[0].mcp.policies.backendTLS.root: x",
		"1 name":                               "f.yaml:11:7: backends[0].mcp.targets[0].name: x",
		"1 policies.backendAuth":               "f.yaml:13:9: backends[0].mcp.targets[0].policies.backendAuth: x",
		"1 policies.backendAuth.key.credentials[0].credential": "f.yaml:14:16: backends[0].mcp.targets[0].policies.backendAuth.key: x",
		"1 mcp.port": "f.yaml:10:13: backends[0].mcp.targets[0].mcp.host: x",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := Place(set.Objects[0], "policies.backendTLS"); got != "f.yaml:8" {
		t.Errorf("Place = %q, want f.yaml:8", got)
	}
}

// TestBombs holds that small files cannot make the loader burst.
func TestBombs(t *testing.T) {
	bomb := "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 20; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [*a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d]\n", i, i, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1)
	}
	for name, tt := range map[string]struct{ data, want string }{
		"aliases":  {bomb, "aliases repeat more than 100000 values"},
		"brackets": {strings.Repeat("[", 1<<17), "more than 64 maps and lists"},
		"braces":   {strings.Repeat("{a: ", 1<<16), "more than 64 maps and lists"},
		"dashes":   {strings.Repeat("- ", 1<<16), "more than 64 maps and lists"},
		"marks":    {strings.Repeat("? ", 1<<16), "more than 64 maps and lists"},
		"anchors":  {strings.Repeat("&a ", 1<<16), "more than 64 maps and lists"},
		"size":     {strings.Repeat("#", 9<<20), "bytes; 8388608 are the limit"},
	} {
		t.Run(name, func(t *testing.T) {
			_, diagnostics := Load([]File{{"f.yaml", []byte(tt.data)}}, nil)
			if all := formatAll(diagnostics); !strings.Contains(all, tt.want) || len(diagnostics) > 30 {
				t.Errorf("got %.300s, want %s", all, tt.want)
			}
		})
	}
}

// TestLineEnds holds that files of other systems mean the same, at the same places.
func TestLineEnds(t *testing.T) {
	unix := "mcp:\n  # c\n  targets:\n  - name: a\n    mcp: {host: http://h}\n    description: |\n      x\n      y\n"
	want, _ := Load([]File{{"f.yaml", []byte(unix)}}, nil)
	got, diagnostics := Load([]File{{"f.yaml", []byte("\xef\xbb\xbf" + strings.ReplaceAll(unix, "\n", "\r\n"))}}, nil)
	if diff := cmp.Diff(want.Objects, got.Objects, protocmp.Transform()); diff != "" || len(diagnostics) > 0 {
		t.Errorf("%s(-unix +dos):\n%s", formatAll(diagnostics), diff)
	}
}

// TestFiles holds that files add up, that each problem names its own, and that the forms do not mix.
func TestFiles(t *testing.T) {
	a := File{"a.yaml", []byte("backends: [{name: b, mcp: {targets: []}}]\n")}
	b := File{"b.yaml", []byte("binds:\n- port: 1\n  listeners:\n  - routes: [{backends: [{backend: b}]}]\n")}
	set, diagnostics := Load([]File{b, a}, nil)
	diagnostics = append(diagnostics, Validate(set.Objects, Context{})...)
	var keys []string
	for _, o := range set.Objects {
		keys = append(keys, Key(o)+" "+Place(o, ""))
	}
	want := []string{"listener/port-1 b.yaml:4", "route/port-1-route-1 b.yaml:4", "backend/b a.yaml:1"}
	if diff := cmp.Diff(want, keys); diff != "" || len(diagnostics) > 0 || set.Single {
		t.Errorf("single %v, %s(-want +got):\n%s", set.Single, formatAll(diagnostics), diff)
	}
	single := File{"c.yaml", []byte("kind: Secret\nname: s\nspec: {value: x}\n")}
	if set, diagnostics = Load([]File{single}, nil); !set.Single || len(diagnostics) > 0 {
		t.Errorf("single %v, %s", set.Single, formatAll(diagnostics))
	}
	_, diagnostics = Load([]File{a, single}, nil)
	if got := formatAll(diagnostics); !strings.HasPrefix(got, "c.yaml:1:1: documents with a kind and the long or short form cannot") {
		t.Errorf("mixed forms: %s", got)
	}
}

func FuzzLoad(f *testing.F) {
	for _, data := range examples(f) {
		f.Add(data)
	}
	f.Add([]byte("a: &a [*a]\n? b\n: !!x c\n<<: {d: e}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, diagnostics := Load([]File{{"f.yaml", data}}, testEnv)
		for _, d := range diagnostics {
			if d.GetMessage() == "" || d.GetPosition().GetLine() < 1 || d.GetPosition().GetColumn() < 1 {
				t.Errorf("a diagnostic without message or place: %v", d)
			}
		}
		if Failed(diagnostics) {
			return
		}
		for _, o := range set.Objects {
			if Kind(o) == "" {
				t.Errorf("an object without a spec: %v", o)
			}
			seal(o)
		}
		if len(set.Objects) == 0 || Failed(Validate(set.Objects, Context{Offline: true})) || strings.Contains(fmt.Sprint(set.Objects), "azure") {
			return
		}
		readBack(t, set.Objects)
	})
}
