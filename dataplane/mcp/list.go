package mcp

// List is one of the four lists that targets have.
type List uint8

// The lists.
const (
	NoList List = iota
	Tools
	Prompts
	Resources
	Templates
)

// Method is the list's method; "" for NoList.
func (l List) Method() string {
	return [...]string{"", "tools/list", "prompts/list", "resources/list", "resources/templates/list"}[l]
}

// Member is the result's member that holds the items; "" for NoList.
func (l List) Member() string {
	return [...]string{"", "tools", "prompts", "resources", "resourceTemplates"}[l]
}
