package resource

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

// A File is one configuration file. Name is what diagnostics call it.
type File struct {
	Name string
	Data []byte
}

// A Set is what files hold. Single is true for documents with kind, name and spec, which are upserts; else
// the objects are the whole content of a set.
type Set struct {
	Objects []*adminv1.Object
	Single  bool
}

// Beside tells a file that lies beside configuration and holds none: tests of policies, or a JSON Schema for editors.
func Beside(f File) bool {
	docs, _ := parse(f.Data)
	if len(docs) != 1 || docs[0].kind != mapNode {
		return false
	}
	schema := docs[0].get("$schema") // of a schema the one that it follows; elsewhere an editor's hint
	return docs[0].has("tests") || schema != nil && strings.Contains(schema.text, "//json-schema.org/")
}

// Load reads configuration in any of its three forms: the long one (binds), the short one (mcp), and single
// documents (kind, name, spec). Files of the long and short form add up; they do not mix with documents.
// Env is where variables come from, e.g. [os.LookupEnv]; if nil none is set.
//
// All that is wrong is told at once. If [Failed], the objects are what could be read and must not be applied.
// What Load finds is about single files; objects that do not fit each other are for [Validate] to find.
func Load(files []File, env func(string) (string, bool)) (Set, []*adminv1.Diagnostic) {
	return load(files, env, nil)
}

// LoadOffline is Load where variables that are not set, and have no default, are what standIn returns for them.
func LoadOffline(files []File, env func(string) (string, bool), standIn func(name string) string) (Set, []*adminv1.Diagnostic) {
	return load(files, env, func(name string) (string, bool) {
		if v, ok := env(name); ok {
			return v, true
		}
		return standIn(name), true
	})
}

func load(files []File, env, required func(string) (string, bool)) (Set, []*adminv1.Diagnostic) {
	if env == nil {
		env = func(string) (string, bool) { return "", false }
	}
	var set Set
	var diagnostics []*adminv1.Diagnostic
	var whole, single *node // the first of their form
	listeners := map[uint64]int{}
	for _, f := range files {
		l := loader{decoder: &decoder{file: f.Name, env: env, required: required}, set: &set, listeners: listeners}
		docs, problems := parse(f.Data)
		l.problems = problems
		for _, doc := range docs {
			if doc.kind == mapNode && doc.has("kind") {
				single = doc
				l.document(doc)
			} else {
				whole = doc
				l.whole(doc)
			}
			if whole != nil && single != nil {
				l.failNode(doc, "documents with a kind and the long or short form cannot be applied together", "put them into files of their own, and apply one after the other")
				whole, single = nil, nil // told once
			}
		}
		if len(docs) == 0 && len(problems) == 0 {
			l.fail(position{1, 1}, "", "the file is empty", "to remove all that a set holds, write binds: []")
		}
		for _, p := range l.problems {
			diagnostics = append(diagnostics, &adminv1.Diagnostic{
				Severity: severityError, File: f.Name, Position: p.pos.proto(), Path: p.path, Message: p.message, Hint: p.hint,
			})
		}
	}
	set.Single = single != nil
	sortDiagnostics(diagnostics, files)
	return set, diagnostics
}

// A loader turns the documents of one file into objects. Its methods follow the forms' nesting.
type loader struct {
	*decoder
	set       *Set
	listeners map[uint64]int // by port, over all files
}

// object adds an object whose spec is n. Name may be written at named, else it comes from the object's place.
func (l loader) object(kind, name string, named *entry, n *node, extra ...string) {
	if n.kind != mapNode {
		l.want(n, mapNode)
		return
	}
	o := &adminv1.Object{Name: name, Source: &adminv1.Source{File: l.file, Position: n.pos.proto(), Path: n.path}}
	fd := specs.ByName(protoreflect.Name(kind))
	s := scope{decoder: l.decoder, source: o.Source, extra: extra}
	if named != nil {
		s.in("name").mark(named.pos, named.value.path)
	}
	m := o.ProtoReflect().NewField(fd)
	s.message(n, m.Message())
	o.ProtoReflect().Set(fd, m)
	l.set.Objects = append(l.set.Objects, o)
}

// name returns the name in a map, or otherwise.
func (l loader) name(n *node, otherwise string) (string, *entry) {
	e := n.entry("name")
	if e == nil {
		return otherwise, nil
	}
	name, ok := l.string(e.value)
	if !ok {
		return otherwise, e
	}
	return name, e
}

// required is name for what has no name by its place. It returns false after reporting that it is missing.
func (l loader) required(n *node) (string, *entry, bool) {
	if n.kind == mapNode && !n.has("name") {
		l.failNode(n, `"name" is missing`, "")
		return "", nil, false
	}
	name, e := l.name(n, "")
	return name, e, l.want(n, mapNode) && name != "" || e != nil
}

// each calls f with the items of a list under a key, if it is there.
func (l loader) each(n *node, key string, f func(i int, item *node)) {
	v := n.get(key)
	if v == nil || !l.want(v, listNode) {
		return
	}
	for i, item := range v.items {
		f(i, item)
	}
}

var topRefused = map[string]string{
	"config": "what a process needs is given by flags", "gateways": "use binds", "routes": "use binds", "tcpRoutes": "only HTTP is served",
	"frontendPolicies": "use policies", "services": "use the targets' host", "workloads": "use the targets' host",
	"routeGroups": "use binds", "llm": "only MCP is served", "ui": "only MCP is served",
}

// whole reads the long and the short form.
func (l loader) whole(doc *node) {
	if !l.fields(doc, topRefused, "binds", "mcp", "backends", "policies", "enforced", "sessionTtl") {
		return
	}
	if level, _ := doc.split("policies", "enforced", "sessionTtl"); len(level.entries) > 0 {
		level.pos = level.entries[0].pos
		if p := level.get("policies"); p != nil && p.kind == listNode {
			l.failNode(p, "expected a map, found a list", "policies here are the tenant's own, by kind; write those of a listener, route, backend or target where it stands")
			level = level.without("policies")
		}
		l.object("tenant", TenantName, nil, level)
	}
	l.each(doc, "binds", func(_ int, item *node) { l.bind(item) })
	if n := doc.get("mcp"); n != nil {
		l.short(n)
	}
	l.each(doc, "backends", func(_ int, item *node) {
		if name, named, ok := l.required(item); ok {
			l.inlineBackend(item, name, named)
		}
	})
}

func (l loader) bind(n *node) {
	if !l.fields(n, map[string]string{"tunnelProtocol": "remove it", "mode": "remove it"}, "port", "listeners") {
		return
	}
	port := n.entry("port")
	if port == nil {
		l.failNode(n, `"port" is missing`, "")
		return
	}
	number, _ := l.uint(port.value, 32)
	l.each(n, "listeners", func(_ int, item *node) {
		if !l.want(item, mapNode) {
			return
		}
		l.listeners[number]++
		name := fmt.Sprintf("port-%d", number)
		if i := l.listeners[number]; i > 1 {
			name = fmt.Sprintf("%s-%d", name, i)
		}
		name, named := l.name(item, name)
		if e := item.entry("port"); e != nil {
			l.fail(e.pos, item.path, "the port belongs to the bind", "remove it here")
		}
		given := *port
		given.value = port.value.scalar(numberNode, strconv.FormatUint(number, 10)) // a wrong one is told once
		l.object("listener", name, named, item.without("name", "routes", "port").with(given), "name", "routes")
		l.each(item, "routes", func(i int, item *node) { l.route(item, name, fmt.Sprintf("%s-route-%d", name, i+1)) })
	})
	if !n.has("listeners") {
		l.failNode(n, `"listeners" is missing`, "")
	}
}

func (l loader) route(n *node, listener, name string) {
	if !l.want(n, mapNode) {
		return
	}
	name, named := l.name(n, name)
	if e := n.entry("listener"); e != nil {
		l.fail(e.pos, n.path, "a route within a listener names none", "remove it here")
	}
	spec := n.without("name", "listener", "backends").with(entry{"listener", n.pos, n.scalar(stringNode, listener)})
	if e := n.entry("backends"); e != nil && l.want(e.value, listNode) {
		references := e.value.listOf()
		for i, item := range e.value.items {
			if r := l.routeBackend(item, fmt.Sprintf("%s-backend-%d", name, i+1)); r != nil {
				references.items = append(references.items, r)
			}
		}
		spec = spec.with(entry{"backends", e.pos, references})
	}
	l.object("route", name, named, spec, "name")
}

var backendRefused = map[string]string{
	"host": "use mcp: {targets: …}", "service": "use mcp: {targets: …}", "internal": "only MCP is served", "dynamic": "only MCP is served", "ai": "only MCP is served",
	"aws": "only MCP is served", "routeGroup": "only MCP is served", "invalid": "only MCP is served",
}

// routeBackend reads an item of a route's backends, a backend of its own or the name of one, and returns the
// reference to it.
func (l loader) routeBackend(n *node, name string) *node {
	if !l.want(n, mapNode) {
		return nil
	}
	if b := n.entry("backend"); b != nil {
		for _, key := range n.keys("name", "mcp", "policies", "enforced", "description") {
			l.fail(n.entry(key).pos, n.path, fmt.Sprintf("%q beside a reference to a backend", key), "write it where the backend stands")
			n = n.without(key)
		}
		return n
	}
	name, named := l.name(n, name)
	if !n.has("mcp") {
		if l.fields(n, backendRefused, "name", "weight", "mcp", "backend", "policies", "enforced", "description") && len(n.keys(refusedKeys(backendRefused)...)) == 0 {
			l.failNode(n, `one of mcp or backend must be set`, "")
		}
		return nil
	}
	l.inlineBackend(n.without("weight"), name, named)
	weight, _ := n.split("weight")
	return weight.with(entry{"backend", n.pos, n.scalar(stringNode, name)})
}

func refusedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	return keys
}

// inlineBackend reads a backend as it stands in a route or at the top: `mcp` with its targets, and policies
// beside or within it.
func (l loader) inlineBackend(n *node, name string, named *entry) {
	if !l.fields(n, backendRefused, "name", "weight", "mcp", "policies", "enforced", "description") {
		return
	}
	if e := n.entry("weight"); e != nil {
		l.fail(e.pos, n.path, "a weight belongs to a route's reference", "remove it here")
	}
	mcp := n.get("mcp")
	if mcp == nil {
		l.failNode(n, `"mcp" is missing`, "")
		return
	}
	if !l.mcpFields(mcp) {
		return
	}
	l.backend(mcp, n, name, named)
}

var mcpFields = []string{"targets", "policies", "enforced", "prefixMode", "failureMode", "description"}

func (l loader) mcpFields(n *node, more ...string) bool {
	return l.fields(n, map[string]string{
		"statefulMode": statefulHint, "dnsRebindingProtection": rebindingHint, "gateways": "use port, or binds",
	}, append(more, mcpFields...)...)
}

// backend adds a backend and its targets. What both mcp and outer may hold is read from both.
func (l loader) backend(mcp, outer *node, name string, named *entry) {
	spec, _ := mcp.split("prefixMode", "failureMode", "description")
	spec.path, spec.pos = outer.path, outer.pos
	if e := outer.entry("description"); e != nil && mcp != outer {
		if spec.has("description") {
			l.fail(e.pos, outer.path, `"description" is given here and within mcp`, "remove one")
		} else {
			spec = spec.with(*e)
		}
	}
	for _, level := range []string{"policies", "enforced"} {
		if e := l.merged(mcp, outer, level); e != nil {
			spec = spec.with(*e)
		}
	}
	l.object("backend", name, named, spec)
	l.targets(mcp, name)
	if !mcp.has("targets") {
		l.failNode(mcp, `"targets" is missing`, "write targets: [] for a backend without any")
	}
}

// merged is the policies of a group, which may stand beside mcp or within: kind by kind, each once.
func (l loader) merged(mcp, outer *node, level string) *entry {
	in, out := mcp.entry(level), outer.entry(level)
	if mcp == outer || in == nil || out == nil {
		if in != nil {
			return in
		}
		return out
	}
	if !l.want(in.value, mapNode) || !l.want(out.value, mapNode) {
		return nil
	}
	both := out.value.with()
	for _, e := range in.value.entries {
		if first := both.entry(e.key); first != nil {
			l.fail(e.pos, e.value.path, fmt.Sprintf("also given at %s in line %d", first.value.path, first.pos.line), "one backend has one policy of a kind; remove one")
			continue
		}
		both.entries = append(both.entries, e)
	}
	return &entry{level, out.pos, both}
}

func (l loader) targets(n *node, backend string) {
	l.each(n, "targets", func(i int, item *node) {
		name, named, ok := l.required(item)
		if !ok {
			return
		}
		for key, why := range map[string]string{"backend": "a target within a backend names none", "index": "a target's place in the list is its index"} {
			if e := item.entry(key); e != nil {
				l.fail(e.pos, item.path, why, "remove it here")
			}
		}
		spec := item.without("name", "backend", "index").with(
			entry{"backend", item.pos, item.scalar(stringNode, backend)},
			entry{"index", item.pos, item.scalar(numberNode, strconv.Itoa(i))})
		l.object("target", backend+"/"+name, named, spec, "name")
	})
}

// defaultPort is that of the short form, as in agentgateway.
const defaultPort = "3000"

// short reads the short form: one listener, one route, one backend, all named mcp. Policies that act before
// a target is known are the route's, all others the backend's.
func (l loader) short(n *node) {
	const name = "mcp"
	if !l.mcpFields(n, "port", "ssePath") {
		return
	}
	port := n.entry("port")
	if port == nil {
		port = &entry{"port", n.pos, n.scalar(numberNode, defaultPort)}
	}
	l.object("listener", name, nil, n.mapOf(*port))

	group := n.without("ssePath")
	route := n.mapOf(
		entry{"listener", n.pos, n.scalar(stringNode, name)},
		entry{"backends", n.pos, n.listOf(n.mapOf(entry{"backend", n.pos, n.scalar(stringNode, name)}))})
	if e := n.entry("ssePath"); e != nil {
		route = route.with(*e)
	}
	for _, level := range []string{"policies", "enforced"} {
		e := n.entry(level)
		if e == nil || e.value.kind != mapNode {
			continue
		}
		first, rest := e.value.split(routePhase()...)
		if len(first.entries) > 0 {
			route = route.with(entry{level, e.pos, first})
		}
		group = group.without(level).with(entry{level, e.pos, rest})
	}
	l.object("route", name, nil, route)
	l.backend(group, group, name, nil)
}

// document reads a single document.
func (l loader) document(doc *node) {
	l.fields(doc, map[string]string{
		"metadata": "write name beside kind", "apiVersion": "remove it", "tenant": "choose it with --tenant", "set": "choose it with --set",
	}, "kind", "name", "spec")
	written, ok := l.string(doc.get("kind"))
	if !ok {
		return
	}
	kind, err := ParseKind(written)
	if err != nil {
		message, hint, _ := strings.Cut(err.Error(), "; ")
		l.failNode(doc.get("kind"), message, hint)
		return
	}
	n := doc.get("spec")
	if n == nil {
		l.failNode(doc, `"spec" is missing`, "")
		return
	}
	if !l.want(n, mapNode) {
		return
	}
	switch kind {
	case "platform":
		l.singleton(doc, kind, PlatformName, "there is one platform")
	case "tenant":
		l.singleton(doc, kind, TenantName, "a tenant has one document of its own level; choose the tenant with --tenant")
	case "backend":
		if name, named, ok := l.required(doc); ok {
			l.object(kind, name, named, n.without("targets"), "targets")
			l.targets(n, name)
		}
	case "target":
		l.targetDocument(doc, n)
	default:
		if name, named, ok := l.required(doc); ok {
			l.object(kind, name, named, n)
		}
	}
}

// singleton reads a document of a kind of which there is one; its name may be left out.
func (l loader) singleton(doc *node, kind, want, why string) {
	name, named := l.name(doc, want)
	if name != want {
		l.failNode(named.value, fmt.Sprintf("the name is %q, and must be %q", name, want), why)
		return
	}
	l.object(kind, want, named, doc.get("spec"))
}

// targetDocument reads a target, whose backend stands in the spec or before the name (`tools/search`).
func (l loader) targetDocument(doc, n *node) {
	name, named, ok := l.required(doc)
	if !ok {
		return
	}
	backend, target, qualified := strings.Cut(name, "/")
	switch e := n.entry("backend"); {
	case e == nil && !qualified:
		l.failNode(n, `"backend" is missing`, "a target belongs to a backend; name it")
		return
	case e == nil:
		n = n.with(entry{"backend", named.pos, named.value.scalar(stringNode, backend)})
	default:
		written, ok := l.string(e.value)
		if !ok {
			return
		}
		if !qualified {
			backend, target = written, name
		} else if backend != written {
			l.failNode(e.value, fmt.Sprintf("the name says backend %q, this %q", backend, written), "remove one of them")
			return
		}
	}
	if !n.has("index") {
		n = n.with(entry{"index", n.pos, n.scalar(numberNode, strconv.FormatUint(math.MaxUint32, 10))})
	}
	l.object("target", backend+"/"+target, named, n)
}
