package main

import "net/http"

type item struct {
	Name  string `json:"name"`
	Cents int    `json:"cents"`
}

// itemService lists the items for sale. It needs no user.
func itemService() http.Handler {
	items := []item{{"tea", 450}, {"bricks", 80}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, items)
	})
	return mux
}
