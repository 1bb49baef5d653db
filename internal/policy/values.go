package policy

import (
	"fmt"
	"net/http"
	"reflect"
	"sort"
	"strings"

	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
)

var emptyMap = types.NewStringInterfaceMap(types.DefaultTypeAdapter, map[string]any{})

// toCEL makes a value of decodeObject readable by rules, deep: what is read often is converted once.
func toCEL(v any) ref.Val {
	switch v := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[k] = toCEL(e)
		}
		return types.NewStringInterfaceMap(types.DefaultTypeAdapter, m)
	case []any:
		list := make([]ref.Val, len(v))
		for i, e := range v {
			list[i] = toCEL(e)
		}
		return types.NewRefValList(types.DefaultTypeAdapter, list)
	}
	return types.DefaultTypeAdapter.NativeToValue(v)
}

// integers turns float64 that are whole into int64, as decodeObject reads them; for google.protobuf.Struct.
func integers(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = integers(e)
		}
	case []any:
		for i, e := range v {
			v[i] = integers(e)
		}
	case float64:
		if i := int64(v); float64(i) == v && v >= -1<<53 && v <= 1<<53 {
			return i
		}
	}
	return v
}

// headers is request.headers: a map from names in lower case to values joined by commas. Lookups ignore
// case. Mcp-* headers are left out: they repeat the message, and differ between listing an item and calling
// it, while a rule must come to the same answer for both.
type headers struct{ http.Header }

func visibleHeader(canonical string) bool { return !strings.HasPrefix(canonical, "Mcp-") }

func (h headers) names() []string {
	var names []string
	for k := range h.Header {
		if visibleHeader(k) {
			names = append(names, strings.ToLower(k))
		}
	}
	sort.Strings(names)
	return names
}

func (h headers) asMap() traits.Mapper {
	m := map[string]string{}
	for _, n := range h.names() {
		m[n] = strings.Join(h.Header.Values(n), ", ")
	}
	return types.NewStringStringMap(types.DefaultTypeAdapter, m)
}

func (h headers) Find(key ref.Val) (ref.Val, bool) {
	name, ok := key.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(key), false
	}
	canonical := http.CanonicalHeaderKey(string(name))
	values := h.Header[canonical]
	if len(values) == 0 || !visibleHeader(canonical) {
		return nil, false
	}
	return types.String(strings.Join(values, ", ")), true
}

func (h headers) Get(key ref.Val) ref.Val {
	v, found := h.Find(key)
	if !found {
		if v != nil {
			return v
		}
		return types.NewErr("no such header: %v", key)
	}
	return v
}

func (h headers) Contains(key ref.Val) ref.Val {
	v, found := h.Find(key)
	if v != nil && types.IsUnknownOrError(v) {
		return v
	}
	return types.Bool(found)
}

func (h headers) Size() ref.Val               { return types.Int(len(h.names())) }
func (h headers) Iterator() traits.Iterator   { return h.asMap().Iterator() }
func (h headers) Equal(other ref.Val) ref.Val { return h.asMap().Equal(other) }
func (h headers) Type() ref.Type              { return types.MapType }
func (h headers) Value() any                  { return h.asMap().Value() }

func (h headers) ConvertToNative(t reflect.Type) (any, error) { return h.asMap().ConvertToNative(t) }

func (h headers) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.MapType:
		return h
	case types.TypeType:
		return types.MapType
	}
	return types.NewErr("%s", fmt.Sprintf("type conversion error from map to %s", t.TypeName()))
}

var _ traits.Mapper = headers{}
