package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/controlplane/tenant"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

const tools = `
mcp:
  port: 3000
  targets:
  - name: search
    mcp: {host: https://search.example.com/mcp}
    policies:
      backendAuth: {key: first-secret}
  - name: files
    mcp: {host: https://files.example.com/mcp}
`

func TestStart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	r := start(t, dir)
	for file, mode := range map[string]os.FileMode{"admin.token": 0o600, "cluster.key": 0o600, "store.db": 0o600, "ca/ca.key": 0o600, "ca.pem": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", file, info, err)
		}
	}
	tenants, err := r.ListTenants(t.Context(), &adminv1.ListTenantsRequest{})
	if err != nil || len(tenants.GetTenants()) != 1 || tenants.GetTenants()[0].GetName() != "default" || len(tenants.GetTenants()[0].GetGrants()) != 0 {
		t.Errorf("tenants of a new control plane: %v, %v", tenants, err)
	}
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ok", "/metrics": `sluice_controlplane_revision{tenant="default"} 1`} {
		resp, err := http.Get("http://" + r.at.Ops + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(body), want) {
			t.Errorf("%s: %s", path, body)
		}
	}
	line, err := json.Marshal(r.at)
	if err != nil || !strings.HasSuffix(string(line), `"listeners":[]}`) {
		t.Errorf("ready line %s, %v", line, err)
	}
	if err := Run(t.Context(), Config{DataDir: dir}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second control plane on the directory: %v", err)
	}
}

// A first start that was killed between the CA's key and its certificate is no reason not to start.
func TestStartAfterHalfAFirstStart(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "ca"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca", "ca.key.new"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, dir)
}

// A store that was emptied is not begun anew: tokens, proxies and all tenants would be gone without a word.
func TestEmptiedStore(t *testing.T) {
	dir := t.TempDir()
	start(t, dir).stop()
	if err := os.Truncate(filepath.Join(dir, "store.db"), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := Run(ctx, Config{DataDir: dir, AdminAddr: "127.0.0.1:0", XDSAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", Ready: func(Addresses) { cancel() }})
	if err == nil || !strings.Contains(err.Error(), "store.db") || !strings.Contains(err.Error(), "backup") {
		t.Errorf("a start on a store that was emptied: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "store.db")); err != nil { // the way out, for who has none
		t.Fatal(err)
	}
	start(t, dir)
}

func TestAllowAtStart(t *testing.T) {
	dir := t.TempDir()
	grants := func(r *running) []string {
		resp, err := r.ListTenants(t.Context(), &adminv1.ListTenantsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetTenants()[0].GetGrants()
	}
	for i, tt := range []struct{ allow, want []string }{
		{[]string{"private-network,stdio=npx"}, []string{"private-network", "stdio=npx"}},
		{nil, []string{"private-network", "stdio=npx"}}, // without the flag: as before
		{[]string{}, nil},
	} {
		r := start(t, dir, tt.allow...)
		if tt.allow != nil && len(tt.allow) == 0 {
			r.stop()
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				done <- Run(ctx, Config{DataDir: dir, AdminAddr: "127.0.0.1:0", XDSAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0", Allow: []string{}, Log: slog.New(slog.DiscardHandler), Ready: func(Addresses) { cancel() }})
			}()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			r = start(t, dir)
		}
		if got := grants(r); !slices.Equal(got, tt.want) {
			t.Errorf("start %d: grants %v, want %v", i, got, tt.want)
		}
		r.stop()
	}
	if err := Run(t.Context(), Config{DataDir: t.TempDir(), Allow: []string{"nonsense"}}); err == nil || !strings.Contains(err.Error(), "--allow") {
		t.Errorf("bad grants: %v", err)
	}
}

// An operator's day: apply, look, change, go back; and all of it is still there after a restart.
func TestRevisions(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir)
	first := r.apply(tools, func(a *adminv1.ApplyRequest) { a.Comment = "first" })
	if first.GetRevision() != 2 || !slices.Contains(keys(first.GetChanges()), "CREATE target/mcp/search") {
		t.Fatalf("first apply: revision %d, %v", first.GetRevision(), keys(first.GetChanges()))
	}
	if again := r.apply(tools); again.GetRevision() != 2 || len(again.GetChanges()) != 0 {
		t.Errorf("the same again: revision %d, %v", again.GetRevision(), keys(again.GetChanges()))
	}
	changed := strings.NewReplacer("first-secret", "second-secret", "files.example.com", "docs.example.com").Replace(tools)
	diff, err := r.Diff(t.Context(), applyRequest(t, changed))
	if err != nil || diff.GetRevision() != 2 || len(diff.GetChanges()) != 2 {
		t.Errorf("diff: %v, %v", diff, err)
	}
	if text := fmt.Sprint(diff); strings.Contains(text, "secret") {
		t.Errorf("diff shows a value: %s", text)
	}
	second := r.apply(changed)
	if second.GetRevision() != 3 || len(second.GetChanges()) != 2 {
		t.Errorf("a change: revision %d, %v", second.GetRevision(), keys(second.GetChanges()))
	}
	without := r.apply("mcp:\n  port: 3000\n  targets:\n  - name: files\n    mcp: {host: https://docs.example.com/mcp}\n")
	if !slices.Contains(keys(without.GetChanges()), "DELETE target/mcp/search") {
		t.Errorf("what is missing from the file: %v", keys(without.GetChanges()))
	}

	check := func(r *running) {
		t.Helper()
		log, err := r.Log(t.Context(), &adminv1.LogRequest{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range log.GetEntries() {
			got = append(got, fmt.Sprintf("%d %s %q %d", e.GetRevision(), e.GetActor(), e.GetComment(), len(e.GetChanges())))
		}
		want := []string{`4 admin "" 2`, `3 admin "" 2`, fmt.Sprintf(`2 admin "first" %d`, len(first.GetChanges())), `1 controlplane "start with --allow" 0`}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("log (-want +got):\n%s", diff)
		}
		old, err := r.Get(t.Context(), &adminv1.GetRequest{Kind: "Target", Name: "files", Revision: 2})
		if err != nil || old.GetTarget().GetMcp().GetHost() != "files.example.com" {
			t.Errorf("files at revision 2: %v, %v", old, err)
		}
		now, err := r.Get(t.Context(), &adminv1.GetRequest{Kind: "target", Name: "mcp/files"})
		if err != nil || now.GetTarget().GetMcp().GetHost() != "docs.example.com" || now.GetRevision() != 4 || now.GetSet() != "default" {
			t.Errorf("files now: %v, %v", now, err)
		}
	}
	check(r)
	r.stop()
	r = start(t, dir)
	check(r)

	back, err := r.Rollback(t.Context(), &adminv1.RollbackRequest{To: 2})
	if err != nil || back.GetRevision() != 5 {
		t.Fatalf("rollback: %v, %v", back, err)
	}
	restored, err := r.Get(t.Context(), &adminv1.GetRequest{Kind: "target", Name: "search"})
	if err != nil || restored.GetTarget().GetPolicies().GetBackendAuth() == nil {
		t.Fatalf("search after rollback: %v, %v", restored, err)
	}
	// The old secret is back too, for it is what the file of revision 2 says.
	if same := r.apply(tools); len(same.GetChanges()) != 0 {
		t.Errorf("after a rollback the old file is a change: %v", keys(same.GetChanges()))
	}
	if _, err := r.Rollback(t.Context(), &adminv1.RollbackRequest{To: 99}); status.Code(err) != codes.NotFound {
		t.Errorf("rollback to what never was: %v", err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"first-secret", "second-secret"} {
		if strings.Contains(string(raw), value) || strings.Contains(r.log.String(), value) {
			t.Errorf("%s stands in the store or the log", value)
		}
	}
}

func TestConflicts(t *testing.T) {
	r := start(t, t.TempDir())
	resp := r.apply(tools)
	stale := applyRequest(t, tools)
	stale.IfRevision = resp.GetRevision() - 1
	if _, err := r.Apply(t.Context(), stale); status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), "revision 2, not 1") {
		t.Errorf("an old if_revision: %v", err)
	}
	other := applyRequest(t, tools)
	other.Set = "other"
	if _, err := r.Apply(t.Context(), other); status.Code(err) != codes.Aborted || !strings.Contains(err.Error(), `"default"`) || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("another set's objects: %v", err)
	}
	if _, err := r.Apply(t.Context(), &adminv1.ApplyRequest{Tenant: "nobody"}); status.Code(err) != codes.NotFound {
		t.Errorf("a tenant that is not there: %v", err)
	}
	if _, err := r.Delete(t.Context(), &adminv1.DeleteRequest{Kind: "backend", Name: "mcp"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("deleting what others name: %v%s", err, diagnosticsOf(err))
	}
	gone, err := r.Delete(t.Context(), &adminv1.DeleteRequest{Kind: "target", Name: "files"})
	if err != nil || !slices.Equal(keys(gone.GetChanges()), []string{"DELETE target/mcp/files"}) || len(gone.GetDiagnostics()) == 0 {
		t.Errorf("delete of a set's object: %v, %v", gone, err)
	}
}

func TestRetriesAreHarmless(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir)
	id := func(a *adminv1.ApplyRequest) { a.RequestId = "r1" }
	first := r.apply(tools, id)
	r.apply(strings.ReplaceAll(tools, "files.example.com", "docs.example.com"))
	if again := r.apply(tools, id); again.GetRevision() != first.GetRevision() || len(again.GetChanges()) != len(first.GetChanges()) {
		t.Errorf("a retry: revision %d with %d changes, want %d with %d", again.GetRevision(), len(again.GetChanges()), first.GetRevision(), len(first.GetChanges()))
	}
	r.stop()
	r = start(t, dir)
	if again := r.apply(tools, id); again.GetRevision() != first.GetRevision() {
		t.Errorf("a retry after a restart: revision %d, want %d", again.GetRevision(), first.GetRevision())
	}
	other := applyRequest(t, strings.ReplaceAll(tools, "first-secret", "x"))
	other.RequestId = "r1"
	if _, err := r.Apply(t.Context(), other); status.Code(err) != codes.Aborted {
		t.Errorf("the id for another request: %v", err)
	}
}

func TestBadInputChangesNothing(t *testing.T) {
	r := start(t, t.TempDir())
	r.apply(tools)
	bad := `
mcp:
  port: 3000
  targets:
  - name: search
    mcp: {host: http://127.0.0.1:9/mcp}
    policies:
      mcpAuthorization: {rules: ['mcp.tool.name = "x"']}
  - name: guarded
    mcp: {host: https://files.example.com/mcp}
    policies:
      ai: {promptGuard: {request: [{regex: {rules: [{pattern: "("}]}}]}}
  - name: local
    stdio: {cmd: npx}
`
	_, err := r.Apply(t.Context(), applyRequest(t, bad))
	told := diagnosticsOf(err)
	if status.Code(err) != codes.InvalidArgument {
		t.Fatalf("apply: %v", err)
	}
	for _, want := range []string{"test.yaml:6:", "test.yaml:8:", "test.yaml:12:", "test.yaml:14:", "private-network", "stdio=npx", "policies.ai"} {
		if !strings.Contains(told, want) {
			t.Errorf("diagnostics do not hold %q:%s", want, told)
		}
	}
	if list, err := r.List(t.Context(), &adminv1.ListRequest{Kind: "target"}); err != nil || list.GetRevision() != 2 || len(list.GetObjects()) != 2 {
		t.Errorf("after a bad apply: %v, %v", list, err)
	}
}

// Appliers of one tenant and of many come at once: each is acknowledged with a revision of its own, and commits are shared.
func TestConcurrentAppliers(t *testing.T) {
	r := start(t, t.TempDir())
	for i := range 4 {
		r.createTenant(fmt.Sprint("t", i))
	}
	var mu sync.Mutex
	revisions := map[string][]int64{}
	var wg sync.WaitGroup
	for i := range 64 {
		name := fmt.Sprint("t", i%4)
		req := applyRequest(t, fmt.Sprintf("kind: Secret\nname: s%d\nspec: {value: v%d}\n", i, i))
		req.Tenant = name
		wg.Go(func() {
			resp, err := r.Apply(context.Background(), req)
			if err != nil {
				t.Errorf("apply %d: %v%s", i, err, diagnosticsOf(err))
				return
			}
			mu.Lock()
			defer mu.Unlock()
			revisions[name] = append(revisions[name], resp.GetRevision())
		})
	}
	wg.Wait()
	for name, got := range revisions {
		slices.Sort(got)
		if len(slices.Compact(slices.Clone(got))) != 16 || got[len(got)-1] != 17 {
			t.Errorf("revisions of %s: %v", name, got)
		}
		list, err := r.List(t.Context(), &adminv1.ListRequest{Tenant: name})
		if err != nil || len(list.GetObjects()) != 16 {
			t.Errorf("%s holds %d objects, %v", name, len(list.GetObjects()), err)
		}
	}
}

func TestPlacesAreClaimed(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir)
	r.createTenant("acme")
	r.createTenant("beta")
	r.apply(tools, forTenant("acme"))
	taken := applyRequest(t, tools)
	taken.Tenant = "beta"
	_, err := r.Apply(t.Context(), taken)
	told := diagnosticsOf(err)
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(told, "is taken") || strings.Contains(told, "acme") || !strings.Contains(told, "test.yaml:") {
		t.Fatalf("a taken place: %v%s", err, told)
	}
	elsewhere := strings.ReplaceAll(tools, "3000", "3001")
	r.apply(elsewhere, forTenant("beta"))

	// In a group of its own a tenant may take the same place; back in one group it may not.
	if _, err := r.PutGroup(t.Context(), &adminv1.PutGroupRequest{Name: "edge", Tenants: []string{"beta"}}); err != nil {
		t.Fatal(err)
	}
	r.apply(tools, forTenant("beta"))
	if _, err := r.DeleteGroup(t.Context(), &adminv1.DeleteGroupRequest{Name: "edge"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a group whose end would put two tenants in one place: %v", err)
	}
	r.stop()
	r = start(t, dir)
	taken = applyRequest(t, tools)
	taken.Tenant = "default"
	if _, err := r.Apply(t.Context(), taken); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a taken place after a restart: %v", err)
	}
	if _, err := r.DeleteTenant(t.Context(), &adminv1.DeleteTenantRequest{Name: "acme"}); err != nil {
		t.Fatal(err)
	}
	r.apply(tools) // free again
	tls := "binds: [{port: 3000, listeners: [{protocol: HTTPS, hostname: h.example.com, tls: {cert: /c, key: /k}, routes: [{backends: [{mcp: {targets: [{name: x, mcp: {host: https://x.example.com}}]}}]}]}]}]"
	if set, found := loadTry(tls); found == "" {
		r.createTenant("gamma", "file")
		_, err := r.Apply(t.Context(), &adminv1.ApplyRequest{Tenant: "gamma", Objects: set})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(diagnosticsOf(err), "with TLS by some") {
			t.Errorf("TLS on a port that others serve without: %v%s", err, diagnosticsOf(err))
		}
	} else {
		t.Errorf("load: %s", found)
	}
}

func TestPlatformChangesAreRevisionsOfTenants(t *testing.T) {
	r := start(t, t.TempDir())
	r.createTenant("acme")
	r.createTenant("empty")
	r.apply(tools, forTenant("acme"))
	resp := r.apply("kind: Platform\nspec:\n  enforced:\n    mcpAuthorization: {rules: [{deny: 'mcp.tool.name == \"drop\"'}]}\n",
		func(a *adminv1.ApplyRequest) { a.Comment = "no drops" })
	if !slices.Equal(keys(resp.GetChanges()), []string{"CREATE platform/platform"}) {
		t.Errorf("changes: %v", keys(resp.GetChanges()))
	}
	log, err := r.Log(t.Context(), &adminv1.LogRequest{Tenant: "acme", Limit: 1})
	if err != nil || log.GetEntries()[0].GetRevision() != 3 || log.GetEntries()[0].GetComment() != "no drops" {
		t.Errorf("log of a tenant with targets: %v, %v", log, err)
	}
	if log, err := r.Log(t.Context(), &adminv1.LogRequest{Tenant: "empty", Limit: 1}); err != nil || log.GetEntries()[0].GetRevision() != 1 {
		t.Errorf("log of a tenant that it means nothing for: %v, %v", log, err)
	}
	explained, err := r.Explain(t.Context(), &adminv1.ExplainRequest{Tenant: "acme", Target: "search"})
	if err != nil || !strings.Contains(fmt.Sprint(explained), "platform") || explained.GetRevision() != 3 {
		t.Errorf("explain: %v, %v", explained, err)
	}
	if _, err := r.Get(t.Context(), &adminv1.GetRequest{Kind: "platform"}); err != nil {
		t.Errorf("get platform: %v", err)
	}

	gone, err := r.Delete(t.Context(), &adminv1.DeleteRequest{Tenant: "acme", Kind: "platform"})
	if err != nil || gone.GetRevision() != 4 || !slices.Equal(keys(gone.GetChanges()), []string{"DELETE platform/platform"}) {
		t.Errorf("delete platform: %v, %v, want revision 4 of acme", gone, err)
	}

	token, err := r.CreateToken(t.Context(), &adminv1.CreateTokenRequest{Role: "tenant-admin", Tenant: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	tenants := r.client(token.GetToken())
	if _, err := tenants.Apply(t.Context(), applyRequest(t, "kind: Platform\nspec: {}\n")); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a tenant's admin changes the platform: %v", err)
	}
	if _, err := tenants.Get(t.Context(), &adminv1.GetRequest{Kind: "target", Name: "search"}); err != nil {
		t.Errorf("a tenant's admin reads its own: %v", err)
	}
	if _, err := tenants.List(t.Context(), &adminv1.ListRequest{Tenant: "default"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a tenant's admin reads another's: %v", err)
	}
	stream, err := tenants.Status(t.Context(), &adminv1.StatusRequest{Tenant: "default"})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a tenant's admin reads another's status: %v", err)
	}
	if !strings.Contains(r.log.String(), "verdict=deny") || !strings.Contains(r.log.String(), "verdict=allow") {
		t.Error("calls are not audited")
	}
}

// Two tenants that have one place in groups of their own can change groups in one edit.
func TestPlacesChangeHands(t *testing.T) {
	dir := t.TempDir()
	r := start(t, dir)
	r.createTenant("acme")
	r.createTenant("beta")
	group := func(tenants ...string) {
		t.Helper()
		if _, err := r.PutGroup(t.Context(), &adminv1.PutGroupRequest{Name: "edge", Tenants: tenants}); err != nil {
			t.Fatal(err)
		}
	}
	group("acme")
	r.apply(tools, forTenant("acme"))
	r.apply(tools, forTenant("beta"))
	group("beta")
	group("acme")
	r.stop()
	r = start(t, dir)
	group("beta")
	taken := applyRequest(t, tools)
	taken.Tenant = "default"
	if _, err := r.Apply(t.Context(), taken); status.Code(err) != codes.InvalidArgument {
		t.Errorf("the place that acme has now: %v", err)
	}
}

// What is too long for the store is the asker's mistake, and told as such.
func TestKeysOfTheStoreAreBounded(t *testing.T) {
	r := start(t, t.TempDir())
	req := applyRequest(t, tools)
	req.RequestId = strings.Repeat("x", 40_000)
	if _, err := r.Apply(t.Context(), req); status.Code(err) != codes.InvalidArgument || !strings.Contains(fmt.Sprint(err), "request id") {
		t.Errorf("a long request id: %.200v", err)
	}
	req = applyRequest(t, "binds: [{port: 3000, listeners: [{routes: [{matches: [{path: {pathPrefix: /"+strings.Repeat("x", 40_000)+"}}], backends: [{mcp: {targets: [{name: x, mcp: {host: https://x.example.com}}]}}]}]}]}]")
	if _, err := r.Apply(t.Context(), req); status.Code(err) != codes.InvalidArgument || !strings.Contains(diagnosticsOf(err), "path") {
		t.Errorf("a long path: %.200v", err)
	}
}

// A control plane that was killed while it deleted a tenant leaves no token for the next one of that name.
func TestTokensOfNoTenant(t *testing.T) {
	dir := t.TempDir()
	start(t, dir).stop()
	s, err := store.OpenBolt(filepath.Join(dir, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	registry, err := tenant.OpenRegistry(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	token := func(of string) string {
		_, text, err := registry.CreateAdminToken(t.Context(), tenant.TenantAdmin, of, "", 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	gone, there := token("acme"), token(tenant.Default)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r := start(t, dir)
	r.createTenant("acme")
	if _, err := r.client(gone).List(t.Context(), &adminv1.ListRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("the token of an earlier tenant: %v", err)
	}
	if _, err := r.client(there).List(t.Context(), &adminv1.ListRequest{}); err != nil {
		t.Errorf("the token of another tenant: %v", err)
	}
}
