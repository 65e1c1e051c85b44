package admin

import (
	"maps"
	"slices"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

func TestOpenAPIDescribesTheCallsThatAreServedAndNoOther(t *testing.T) {
	t.Parallel()
	doc, err := openapi3.NewLoader().LoadFromData(OpenAPI)
	if err != nil {
		t.Fatal(err)
	}
	var described []string
	for path, item := range doc.Paths.Map() {
		for method := range item.Operations() {
			described = append(described, method+" "+path)
		}
	}
	served := newKit(t).calls()
	for _, pattern := range slices.Sorted(maps.Keys(served)) {
		if !slices.Contains(described, pattern) {
			t.Errorf("openapi.yaml does not describe %s", pattern)
		}
	}
	slices.Sort(described)
	for _, pattern := range described {
		if _, isServed := served[pattern]; !isServed {
			t.Errorf("openapi.yaml describes %s, which is not served", pattern)
		}
	}
}
