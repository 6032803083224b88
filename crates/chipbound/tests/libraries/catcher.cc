// Catches what its library throws.
#include <iostream>
#include <stdexcept>
#include <thread>

extern "C" int greet(int);

int main()
{
    std::cout << greet(2) << std::endl;
    std::thread([] { std::cout << greet(1) << std::endl; }).join();
    try {
        greet(3);
    } catch (const std::logic_error &error) {
        std::cout << "caught outside: " << error.what() << std::endl;
    }
    return 5;
}
