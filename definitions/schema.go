package definitions

import _ "embed"

// Schema is the JSON Schema (draft 2020-12) of a definitions file, for editors. It is generated from the structure
// and the constraints. It accepts more than [Parse], because it does not include the semantics.
//
//go:embed gatepost.schema.json
var Schema []byte
