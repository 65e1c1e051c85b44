package main

import (
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"sync"
)

type order struct {
	ID       int    `json:"id"`
	Item     string `json:"item"`
	Quantity int    `json:"quantity"`
}

// orderBook is an in-memory store of every user's orders.
type orderBook struct {
	mu     sync.Mutex
	lastID int
	orders map[string]map[int]order // user → order id → order
}

// orderService gives each user access to their own orders only. It trusts the user's id in
// `x-user-id`: only the gateway can reach the service, and the gateway removes that header from
// client requests.
func orderService() http.Handler {
	book := &orderBook{lastID: 2, orders: map[string]map[int]order{
		"user-1": {1: {ID: 1, Item: "tea", Quantity: 2}},
		"user-2": {2: {ID: 2, Item: "bricks", Quantity: 500}},
	}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", forUser(book.list))
	mux.HandleFunc("POST /{$}", forUser(book.add))
	mux.HandleFunc("GET /{id}", forOrder(book.get))
	mux.HandleFunc("PUT /{id}", forOrder(book.put))
	mux.HandleFunc("DELETE /{id}", forOrder(book.remove))
	return mux
}

func (b *orderBook) list(w http.ResponseWriter, _ *http.Request, user string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	orders := make([]order, 0, len(b.orders[user]))
	for _, o := range b.orders[user] {
		orders = append(orders, o)
	}
	slices.SortFunc(orders, func(x, y order) int { return cmp.Compare(x.ID, y.ID) })
	answer(w, http.StatusOK, struct {
		User   string  `json:"user"`
		Orders []order `json:"orders"`
	}{user, orders})
}

func (b *orderBook) add(w http.ResponseWriter, r *http.Request, user string) {
	o, ok := readOrder(w, r)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastID++
	o.ID = b.lastID
	if b.orders[user] == nil {
		b.orders[user] = map[int]order{}
	}
	b.orders[user][o.ID] = o
	answer(w, http.StatusCreated, o)
}

func (b *orderBook) get(w http.ResponseWriter, _ *http.Request, user string, id int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o, ok := b.orders[user][id]
	if !ok {
		noSuchOrder(w)
		return
	}
	answer(w, http.StatusOK, o)
}

func (b *orderBook) put(w http.ResponseWriter, r *http.Request, user string, id int) {
	o, ok := readOrder(w, r)
	if !ok {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.orders[user][id]; !ok {
		noSuchOrder(w)
		return
	}
	o.ID = id
	b.orders[user][id] = o
	answer(w, http.StatusOK, o)
}

func (b *orderBook) remove(w http.ResponseWriter, _ *http.Request, user string, id int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.orders[user][id]; !ok {
		noSuchOrder(w)
		return
	}
	delete(b.orders[user], id)
	w.WriteHeader(http.StatusNoContent)
}

// forUser reads the user's id. If it is missing, the request did not come through the gateway.
func forUser(h func(http.ResponseWriter, *http.Request, string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		user := r.Header.Get("X-User-Id")
		if user == "" {
			answer(w, http.StatusForbidden, "No user: call through the gateway")
			return
		}
		h(w, r, user)
	}
}

// forOrder reads the user's id and the id of the order.
func forOrder(h func(http.ResponseWriter, *http.Request, string, int)) http.HandlerFunc {
	return forUser(func(w http.ResponseWriter, r *http.Request, user string) {
		id, err := strconv.Atoi(r.PathValue("id"))
		if err != nil {
			noSuchOrder(w)
			return
		}
		h(w, r, user, id)
	})
}

func readOrder(w http.ResponseWriter, r *http.Request) (order, bool) {
	var o order
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&o)
	if err != nil || o.Item == "" || o.Quantity < 1 {
		answer(w, http.StatusBadRequest, `Send {"item": "…", "quantity": 1}`)
		return order{}, false
	}
	return o, true
}

func noSuchOrder(w http.ResponseWriter) {
	answer(w, http.StatusNotFound, "No such order")
}
