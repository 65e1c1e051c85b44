package authz

func runBenchServer() {}
