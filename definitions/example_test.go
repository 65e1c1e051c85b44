package definitions_test

import (
	"fmt"

	"gatepost/definitions"
)

func ExampleParse() {
	_, err := definitions.Parse("shop.yaml", []byte(`
services:
  - name: orders
    path: /orders/
    allowed_method: [GET]
    upstreams: ["http://orders:8080"]
  - name: items
    path: /items
    upstreams: ["items:8080"]
    timeout: 15
`))
	fmt.Println(err)
	// Output:
	// shop.yaml:4:11: services[0].path: "/orders/" ends in a slash (write "/orders")
	// shop.yaml:5:5: services[0].allowed_method: unknown field (did you mean allowed_methods?)
	// shop.yaml:9:17: services[1].upstreams[0]: "items:8080" has no http:// or https:// before it (write "http://items:8080")
	// shop.yaml:10:14: services[1].timeout: is "15", not a duration (write a number with its unit, such as 15s, 500ms or 2h)
	// see docs/troubleshooting.md#paths, docs/troubleshooting.md#fields-and-values, docs/troubleshooting.md#addresses
}
